"""`chat`: a conversation, in which the micro-vector can be exchanged, and moves towards what is liked."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from .. import MicroVector, TinyLoraError
from ..shipping import layout
from . import console, keyfiles, vectors
from .options import (
    BundleArgument,
    EngineOption,
    GpuLayersOption,
    KeysOption,
    StreamOption,
    ThreadsOption,
)
from .run import (
    AnswerStream,
    ContextOption,
    MaxTokensOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    VectorOption,
    Wrapped,
    load,
    messages,
    take_any_bytes,
    write,
)

if TYPE_CHECKING:
    from ..runtime import TinyLoraLlama, TinyLoraOnnx
    from ..runtime.feedback.clicks import Clicks

_COMMANDS = """\
/vector FILE  exchange the vector; alone, it says which one is active
/base         back to the base; the conversation stays
/like         the last answer is as wanted: the vector moves, in some seconds
/dislike      the last answer is not as wanted
/save FILE    write the vector as it is now
/clear        forget the conversation; the vector stays
/quit         leave, as /exit and the end of input do"""
"""What may be typed in the place of a turn."""

_STEP = 256  # tokens by which the room for a prompt with its answer grows
_MORE = 16  # an answer read again may have a few tokens more than it was written with


def chat(
    bundle: BundleArgument,
    vector: VectorOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    n_ctx: ContextOption = 2048,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    engine: EngineOption = None,
    system: SystemOption = None,
    keys: KeysOption = None,
    stream: StreamOption = layout.DEFAULT_STREAM,
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
    policy, stream = keyfiles.policy(keys), layout.bound_name(stream)
    llm = load(bundle, vector, n_ctx, threads, engine, policy, stream, gpu_layers)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    interactive = sys.stdin.isatty()
    take_any_bytes()
    if interactive:
        _note(f"{_state(llm.vector)}. /help lists the commands.")
    with closing(Conversation(llm, system, options, stream, threads)) as conversation:
        for line in _lines(interactive):
            try:
                if not conversation.take(line, interactive):
                    return
            except (TinyLoraError, OSError) as error:
                if not interactive or isinstance(error, BrokenPipeError):
                    raise
                console.fail(error)


class Conversation:
    """Messages so far, and what a line of input does to them and to the vector."""

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
        self._messages = list(self._start)

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
            self._messages, self._last = list(self._start), None
            _note("the conversation is forgotten")
        elif word in ("/like", "/dislike"):
            self._click(1 if word == "/like" else -1, interactive)
        elif word == "/save":
            self._save(rest)
        elif word == "/help":
            for each in _COMMANDS.splitlines():
                console.note(each)
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
            with console.progress("learning from the answer"):
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
        vectors.check_target(file)
        data = vector.to_bytes(self._llm.basis)
        vectors.write(file, data)
        _note(f"wrote {file}: {len(data)} bytes, {vectors.summary(vector)}, CRC-32")

    def _turn(self, text: str, interactive: bool) -> None:
        asked = [*self._messages, *messages(None, text)]
        answer = AnswerStream()
        wrap = Wrapped(write) if sys.stdout.isatty() else None
        with _interrupt_stops(interactive) as stopped:
            chunks = self._llm.create_chat_completion(asked, stream=True, **self._options)
            for piece in answer.awaited(chunks):
                wrap.add(piece) if wrap else write(piece)
                if stopped:
                    chunks.close()
                    break
        if wrap:
            wrap.end()
        write("\n")
        self._messages = [*asked, {"role": "assistant", "content": answer.text}]
        ended = not stopped and answer.finish_reason == "stop"
        self._last = Said(asked, answer.text, ended, self._options["temperature"]) if answer.text else None


@dataclass(frozen=True)
class Said:
    """An answer in a conversation.

    Attributes:
        messages: what it answers.
        text: the answer.
        ended: it ended by itself.
        temperature: that it was drawn at.
    """

    messages: Sequence[dict[str, str]]
    text: str
    ended: bool
    temperature: float


class Liking:
    """What the likes and dislikes of one conversation say, counted from the vector that it began with.

    Another vector begins anew: `begin_with`. The state is kept for as long as this lives.

    Args:
        llm: the model of the conversation; its vector is left alone.
        threads: cores to use; None for all.

    Raises:
        CommandError: the engine cannot score answers.
    """

    def __init__(self, llm: TinyLoraLlama | TinyLoraOnnx, threads: int | None) -> None:
        if not llm.model_path.endswith(".gguf"):
            raise console.CommandError(
                "likes and dislikes need llama.cpp, which scores answers, and this is ONNX Runtime: "
                "start the chat with --engine llama"
            )
        self._llm: Any = llm
        self._threads = threads
        self._start: MicroVector | None = None
        self._clicks: Clicks | None = None
        self._room = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.count = 0

    def begin_with(self, vector: MicroVector | None) -> None:
        """Forget what was clicked; what comes moves this vector, or the base."""
        self.close()
        self._start, self.count = vector, 0

    def tell(self, said: Said, reward: int) -> MicroVector:
        """Learn that an answer was liked (+1), or was not (-1), and return the vector of now.

        Raises:
            TrainError: the answer is empty, or the model's logits are not finite. Nothing was learned.
        """
        from ..runtime.feedback.given import Given
        from ..runtime.llama.prompts import encode, turn_end

        prompt = encode(self._llm, list(said.messages)).tolist()
        tokens = self._llm.tokenize(said.text.encode(), add_bos=False, special=False)
        if said.ended:
            tokens = [*tokens, turn_end(self._llm)]
        clicks, state = self._ready(len(prompt) + len(tokens) + _MORE)
        given = Given(tuple(prompt), tuple(tokens), self._llm.vector, said.temperature)
        moved = clicks.tell(state, given, reward)
        self.count += 1
        return moved

    def close(self) -> None:
        """Free the contexts, and forget."""
        if self._clicks is not None:
            self._clicks.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._clicks = self._folder = None
        self._room = 0

    def _ready(self, room: int) -> tuple[Clicks, Path]:
        """Return what learns, with room for so many tokens, and the file of its state."""
        from ..runtime.batch import Batch
        from ..runtime.feedback.clicks import Clicks

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tinylora-chat-")
        if self._clicks is None or room > self._room:
            if self._clicks is not None:
                self._clicks.close()
            self._room = -(-room // _STEP) * _STEP
            batch = Batch(self._llm, n_ctx_seq=self._room, sequences=2, n_threads=self._threads)
            self._clicks = Clicks(self._llm.basis, batch, start=self._start)
        return self._clicks, Path(self._folder.name) / "clicks.state"


def _note(text: str) -> None:
    console.note(text, "dim")  # what is not the model's


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
