"""`chat`: a conversation, in which the micro-vector can be exchanged."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import MicroVector, TinyLoraError
from . import console, keyfiles, vectors
from .generation import (
    AnswerStream,
    ContextOption,
    MaxTokensOption,
    RunnableArgument,
    SeedOption,
    SystemOption,
    TemperatureOption,
    awaited,
    load,
    messages,
    take_any_bytes,
    write,
)
from .liking import Liking, Said
from .options import (
    BundleKeysOption,
    EngineOption,
    GpuLayersOption,
    KeysOption,
    MarkStreamOption,
    StateOption,
    ThreadsOption,
)
from .wrapping import Wrapped, columns

if TYPE_CHECKING:
    from ..runtime import TinyLoraLlama, TinyLoraOnnx

_COMMANDS = {
    "/help": ("", "list these"),
    "/clear": ("", "forget the conversation; the vector stays"),
    "/vector": ("FILE", "exchange the vector; alone, it says which one is active"),
    "/base": ("", "back to the base; the conversation stays"),
    "/like": ("", "the last answer is as wanted: the vector moves, in some seconds"),
    "/dislike": ("", "the last answer is not as wanted"),
    "/save": ("FILE", "write the vector as it is now"),
    "/quit": ("", "leave, as /exit and the end of input do"),
}
"""What may be typed in the place of a turn: what stands behind it, and what it does."""


def chat(
    bundle: RunnableArgument,
    vector: Annotated[
        str | None, typer.Option(metavar="FILE", help="The vector to start with. [default: none, the base]")
    ] = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    n_ctx: ContextOption = 2048,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    engine: EngineOption = None,
    system: SystemOption = None,
    keys: KeysOption = None,
    bundle_keys: BundleKeysOption = None,
    state: StateOption = None,
    stream: MarkStreamOption = "",
) -> None:
    """Talk with the model, and change its vector on the way.

    A line is a turn. /vector FILE exchanges the vector, /base goes back to the base, /like and /dislike move
    the vector, /save FILE writes it, /clear forgets the conversation, /quit leaves, /help lists them. Lines
    may come from a pipe; there the first error ends the command.

    \b
    Example:
      tinylora-edge chat out/demo --vector vector.bin
    """
    if vector == vectors.STREAM:
        raise typer.BadParameter("stdin carries the conversation: pass a file", param_hint="--vector")
    policy = keyfiles.policy(keys, state, bundle_keys)
    stream = keyfiles.stream_of(stream)
    llm = load(bundle, vector, n_ctx, threads, engine, policy, stream, gpu_layers)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    interactive = sys.stdin.isatty()
    take_any_bytes()
    if interactive:
        _note(f"{_state(llm.vector)}. /help lists the commands.")
    conversation = Conversation(llm, system, options, stream, threads)
    with closing(conversation):
        for line in _lines(interactive):
            try:
                if not conversation.take(line, interactive):
                    return
            except (TinyLoraError, OSError) as error:
                if not interactive or isinstance(error, BrokenPipeError):
                    raise
                console.fail(error)


class Conversation:
    """Messages so far, and what a line of input does to them and to the vector.

    Attributes:
        messages: what was said.
    """

    def __init__(
        self,
        llm: TinyLoraLlama | TinyLoraOnnx,
        system: str | None,
        options: dict[str, Any],
        stream: str,
        threads: int | None = None,
    ) -> None:
        self._llm = llm
        self._stream = stream
        self._start = messages(system)
        self._options = options
        self._threads = threads
        self._liking: Liking | None = None
        self._last: Said | None = None  # the answer that may be liked
        self.messages = list(self._start)

    def close(self) -> None:
        """Forget what was liked."""
        if self._liking is not None:
            self._liking.close()

    def take(self, line: str, interactive: bool) -> bool:
        """Act on a line; return False where it ends the conversation."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not word.startswith("/"):
            if word:
                self._turn(line.strip(), interactive)
            return True
        if word in ("/quit", "/exit"):
            return False
        if word == "/vector" and rest:
            self._exchange(rest)
        elif word == "/vector":
            _note(_state(self._llm.vector))
        elif word == "/base":
            self._llm.clear()
            self._begin_anew()
            _note(_state(None))
        elif word == "/clear":
            self.messages, self._last = list(self._start), None
            _note("the conversation is forgotten")
        elif word in ("/like", "/dislike"):
            self._click(1 if word == "/like" else -1, interactive)
        elif word == "/save":
            self._save(rest)
        elif word == "/help":
            _print_help()
        else:
            raise console.CommandError(f"unknown command {line.strip()!r}: /help lists the commands")
        return True

    def _exchange(self, file: str) -> None:
        if file == vectors.STREAM:
            raise console.CommandError("stdin carries the conversation: name a file, /vector FILE")
        self._llm.swap(vectors.read(file), stream=self._stream)
        self._begin_anew()
        _note(f"vector: {_state(self._llm.vector)}")

    def _begin_anew(self) -> None:
        # What the vector before answered says which way to go from it, and not from this one.
        self._last = None
        if self._liking is not None:
            self._liking.begin_with(self._llm.vector)

    def _click(self, reward: int, interactive: bool) -> None:
        if self._last is None:
            raise console.CommandError("there is no answer to like, or it was clicked already: ask something")
        if self._liking is None:
            self._liking = Liking(self._llm, self._threads)
            self._liking.begin_with(self._llm.vector)
        try:
            with console.working("learning from the answer"):
                moved = self._liking.tell(self._last, reward)
        except KeyboardInterrupt:
            if not interactive:
                raise
            _note("stopped: nothing was learned")
            return
        self._llm.swap(moved)
        self._last = None
        clicks = console.counted(self._liking.count, "click")
        _note(f"learned from {clicks}: {vectors.summary(moved)}. /save FILE keeps the vector")

    def _save(self, file: str) -> None:
        vector = self._llm.vector
        if not file:
            raise console.CommandError("say where: /save FILE")
        if file == vectors.STREAM:
            raise console.CommandError("stdout carries the answers: name a file, /save FILE")
        if vector is None:
            raise console.CommandError(
                "there is no vector to save, the base answers: /like or /dislike an answer first"
            )
        if os.path.lexists(file):
            raise console.CommandError(f"{file} exists already: choose another name")
        vectors.check_target(file, force=False)
        data = vector.to_bytes(self._llm.basis)
        vectors.write(file, data)
        _note(f"wrote {file}: {len(data)} bytes, {vectors.summary(vector)}, CRC-32")

    def _turn(self, text: str, interactive: bool) -> None:
        asked = [*self.messages, *messages(None, text)]
        answer = AnswerStream()
        wrap = Wrapped(write, columns) if sys.stdout.isatty() else None
        with _interrupt_stops(interactive) as stopped:
            chunks = self._llm.create_chat_completion(asked, stream=True, **self._options)
            for piece in awaited(answer.stream(chunks)):
                wrap.add(piece) if wrap else write(piece)
                if stopped:
                    chunks.close()
                    break
        if wrap:
            wrap.end()
        write("\n")
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        ended = not stopped and answer.finish_reason == "stop"
        self._last = Said(asked, answer.text, ended, self._options["temperature"]) if answer.text else None


def _note(text: str) -> None:
    console.note(text, "dim")  # what is not the model's


def _print_help() -> None:
    typed = {f"{name} {argument}".strip(): purpose for name, (argument, purpose) in _COMMANDS.items()}
    longest = max(map(len, typed))
    beside = longest + 2 + max(map(len, typed.values())) <= console.stderr().width
    for name, purpose in typed.items():
        if beside:
            console.note(f"{name:<{longest}}  {purpose}")
        else:
            console.note(name)
            console.indented(purpose, 4, console.stderr())


@contextmanager
def _interrupt_stops(interactive: bool) -> Iterator[list[int]]:
    """Let the first Ctrl-C end the answer, between two tokens, and not the conversation."""
    stopped: list[int] = []
    if not interactive:
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and a history
    with suppress(EOFError):
        while True:
            yield input("> ")
    write("\n")


def _state(vector: MicroVector | None) -> str:
    if vector is None:
        return "the base, without a vector"
    return f"{vectors.summary(vector)}, sequence {vector.sequence}"
