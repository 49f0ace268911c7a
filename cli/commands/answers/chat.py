"""`chat`: a conversation, in which the micro-vector can be exchanged."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .... import MicroVector, TinyLoraError
from ...shared import console, keyfiles, vectors
from ...shared.advice import advise
from ...shared.options import (
    BundleKeysOption,
    EngineOption,
    KeysOption,
    MacsOption,
    MarkStreamOption,
    MaxNormOption,
    RequireOption,
    StateOption,
    TodayOption,
    TrustOption,
    VersionsOption,
)
from .generation import (
    AnswerStream,
    ContextOption,
    MaxTokensOption,
    RunnableArgument,
    SeedOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    load,
    messages,
    write,
)

if TYPE_CHECKING:
    from ....runtime import TinyLoraLlama, TinyLoraOnnx

_HELP = """\
/swap FILE  exchange the vector; the conversation stays
/clear      back to the base; the conversation stays
/reset      forget the conversation; the vector stays
/exit       leave, as the end of input does"""


def chat(
    ctx: typer.Context,
    bundle: RunnableArgument,
    vector: Annotated[
        str | None, typer.Option(metavar="FILE", help="The vector to start with. [default: none, the base]")
    ] = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    n_ctx: ContextOption = 2048,
    threads: ThreadsOption = None,
    engine: EngineOption = None,
    system: SystemOption = None,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    bundle_keys: BundleKeysOption = None,
    require: RequireOption = None,
    max_norm: MaxNormOption = float("inf"),
    state: StateOption = None,
    stream: MarkStreamOption = "",
    versions: VersionsOption = None,
    today: TodayOption = None,
) -> None:
    """Talk with the model; exchange its vector on the way.

    A line is a turn. /swap FILE exchanges the vector, /clear goes back to the base, /reset forgets the
    conversation, /exit leaves. Lines may come from a pipe; there the first error ends the command.

    \b
    Example:
      tinylora-edge chat smollm2 --vector vector.bin
    """
    if vector == vectors.STREAM:
        raise typer.BadParameter("stdin carries the conversation: pass a file", param_hint="--vector")
    policy = keyfiles.policy(
        keys,
        macs,
        require,
        max_norm,
        state,
        trust=trust,
        bundle_keys=bundle_keys,
        versions=versions,
        today=today,
    )
    stream = keyfiles.stream_of(stream)
    llm = load(bundle, vector, n_ctx, threads, engine, policy, stream)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    interactive = sys.stdin.isatty()
    if interactive:
        console.note(f"{_state(llm.vector)}. /help lists the commands.")
    conversation = Conversation(llm, system, options, stream)
    for line in _lines(interactive):
        try:
            if not conversation.take(line, interactive):
                return
        except (TinyLoraError, OSError) as error:
            if not interactive or isinstance(error, BrokenPipeError):
                raise
            if isinstance(error, TinyLoraError):
                advise(error, ctx)
            console.fail(error)


class Conversation:
    """Messages so far, and what a line of input does to them and to the vector."""

    def __init__(
        self, llm: TinyLoraLlama | TinyLoraOnnx, system: str | None, options: dict[str, Any], stream: str
    ) -> None:
        self._llm = llm
        self._stream = stream
        self._start = messages(system)
        self._options = options
        self.messages = list(self._start)

    def take(self, line: str, interactive: bool) -> bool:
        """Act on a line; return False where it ends the conversation."""
        word, _, rest = line.strip().partition(" ")
        if not word.startswith("/"):
            if word:
                self._turn(line.strip(), interactive)
            return True
        if word == "/exit":
            return False
        if word == "/swap" and rest.strip():
            self._llm.swap(vectors.read(rest.strip()), stream=self._stream)
            console.note(f"swapped: {_state(self._llm.vector)}")
        elif word == "/clear":
            self._llm.clear()
            console.note(f"cleared: {_state(None)}")
        elif word == "/reset":
            self.messages = list(self._start)
            console.note("the conversation is forgotten")
        elif word == "/help":
            for text in _HELP.splitlines():
                console.note(text)
        else:
            raise console.CommandError(
                f"unknown command {line.strip()!r}: type /swap FILE, /clear, /reset or /exit"
            )
        return True

    def _turn(self, text: str, interactive: bool) -> None:
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = AnswerStream()
        with _interrupt_stops(interactive) as stopped:
            chunks = self._llm.create_chat_completion(asked, stream=True, **self._options)
            for piece in answer.stream(chunks):
                write(piece)
                if stopped:
                    chunks.close()
                    break
        write("\n")
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]


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
    return f"{vector.values.size} {vector.dtype} values, norm {vector.norm:.4g}, sequence {vector.sequence}"
