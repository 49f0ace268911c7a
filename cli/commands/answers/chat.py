"""`run` and `chat`: one answer, or a conversation, with or without a micro-vector."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..._policy import Policy
from ...errors import TinyLoraError
from ...vector import MicroVector
from ..shared import console, keyfiles, vectors

if TYPE_CHECKING:
    from ...runtime import TinyLoraLlama, TinyLoraOnnx


class EngineName(StrEnum):
    """The engines that a bundle may have a base for."""

    llama = "llama"
    onnx = "onnx"


Bundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a .gguf with <stem>.basis.gguf beside it.")
]
MaxTokens = Annotated[
    int, typer.Option(metavar="N", min=0, help="Longest answer in tokens; 0: until the context is full.")
]
Temperature = Annotated[
    float, typer.Option(metavar="T", min=0, help="0 takes the likeliest token each time.")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, max=(1 << 32) - 2, help="Seed of the sampling.")]
Context = Annotated[
    int, typer.Option("--n-ctx", metavar="N", min=0, help="Context in tokens; 0: the model's own.")
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads. [default: the engine's]")]
Engine = Annotated[
    EngineName | None, typer.Option(help="What runs it. [default: what BUNDLE has; llama where it has both]")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="A system message that comes first.")]

_CONTEXT_STEP = 256

_HELP = """\
/swap FILE  exchange the vector; the conversation stays
/clear      back to the base; the conversation stays
/reset      forget the conversation; the vector stays
/exit       leave, as the end of input does"""


def run_prompt(
    bundle: Bundle,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from stdin.")],
    vector: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The vector to apply; - is stdin. [default: none, the base]"),
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    n_ctx: Context = 2048,
    threads: Threads = None,
    engine: Engine = None,
    system: System = None,
    keys: keyfiles.Keys = None,
    macs: keyfiles.Macs = None,
    require: keyfiles.Demand = None,
    max_norm: keyfiles.MaxNorm = float("inf"),
    state: keyfiles.State = None,
    stream: keyfiles.Stream = "",
    raw_prompt: Annotated[
        bool, typer.Option("--raw-prompt", help="Continue PROMPT as it is, without the chat template.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report the answer as JSON when it is done.")
    ] = False,
) -> None:
    """Ask once, and stream the answer to stdout.

    A signed vector, or one with a MAC, needs the key that it is checked under.

    \b
    Examples:
      tinylora-edge run smollm2 --vector vector.bin "Describe the moon in one sentence."
      tinylora-edge run smollm2 --vector v1.bin --key fleet.key.pub --state v.state "Describe the moon."
    """
    if vector == prompt == vectors.STREAM:
        raise typer.BadParameter("stdin carries the vector: pass PROMPT as an argument", param_hint="PROMPT")
    if raw_prompt and system is not None:
        raise typer.BadParameter("a raw prompt has no system message", param_hint="--system")
    policy = keyfiles.policy(keys, macs, require, max_norm, state)
    llm = _load(bundle, vector, n_ctx, threads, engine, policy, keyfiles.stream_of(stream))
    if prompt == vectors.STREAM:
        prompt = sys.stdin.read()
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    start = time.perf_counter()
    if raw_prompt:
        chunks = llm.create_completion(prompt, stream=True, **options)
    else:
        chunks = llm.create_chat_completion(_messages(system, prompt), stream=True, **options)
    answer = Answer()
    for piece in answer.stream(chunks):
        if not as_json:
            _write(piece)
    seconds = time.perf_counter() - start
    if not as_json:
        _write("" if answer.text.endswith("\n") else "\n")
        return
    console.print_json(
        {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "chunks": answer.chunks,
            "seconds": round(seconds, 3),
            "basis_digest": llm.basis.digest,
            "vector": _describe(llm.vector),
        }
    )


def chat(
    bundle: Bundle,
    vector: Annotated[
        str | None, typer.Option(metavar="FILE", help="The vector to start with. [default: none, the base]")
    ] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    n_ctx: Context = 2048,
    threads: Threads = None,
    engine: Engine = None,
    system: System = None,
    keys: keyfiles.Keys = None,
    macs: keyfiles.Macs = None,
    require: keyfiles.Demand = None,
    max_norm: keyfiles.MaxNorm = float("inf"),
    state: keyfiles.State = None,
    stream: keyfiles.Stream = "",
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
    policy, stream = keyfiles.policy(keys, macs, require, max_norm, state), keyfiles.stream_of(stream)
    llm = _load(bundle, vector, n_ctx, threads, engine, policy, stream)
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
            console.fail(error)


class Answer:
    """The text of a stream of completion chunks, as it comes in."""

    def __init__(self) -> None:
        self.text = ""
        self.chunks = 0
        self.finish_reason: str | None = None

    def stream(self, chunks: Iterator[Any]) -> Iterator[str]:
        """Yield the pieces of text.

        Raises:
            CommandError: the prompt does not fit the context.
        """
        try:
            for chunk in chunks:
                choice = chunk["choices"][0]
                piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
                self.finish_reason = choice["finish_reason"] or self.finish_reason
                if piece:
                    self.text += piece
                    self.chunks += 1
                    yield piece
        except ValueError as error:
            if "exceed context window" not in str(error):
                raise
            raise console.CommandError(
                f"the prompt does not fit: {str(error)[:1].lower()}{str(error)[1:]}. "
                "Shorten it (in a chat: /reset), or pass a larger --n-ctx"
            ) from error


class Conversation:
    """Messages so far, and what a line of input does to them and to the vector."""

    def __init__(
        self, llm: TinyLoraLlama | TinyLoraOnnx, system: str | None, options: dict[str, Any], stream: str
    ) -> None:
        self._llm = llm
        self._stream = stream
        self._start = _messages(system)
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
        answer = Answer()
        with _interrupt_stops(interactive) as stopped:
            chunks = self._llm.create_chat_completion(asked, stream=True, **self._options)
            for piece in answer.stream(chunks):
                _write(piece)
                if stopped:
                    chunks.close()
                    break
        _write("\n")
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


def _load(
    bundle: Path,
    vector: str | None,
    n_ctx: int,
    threads: int | None,
    chosen: EngineName | None,
    policy: Policy,
    stream: str,
) -> TinyLoraLlama | TinyLoraOnnx:
    from ... import runtime

    data = vectors.read(vector) if vector is not None else None
    engine = runtime.engine_of(bundle, chosen.value if chosen else None)
    options: dict[str, Any] = {"n_ctx": n_ctx, "policy": policy, "stream": stream}
    if threads is not None:
        options["n_threads"] = threads
    if engine == "onnx":
        onnx: TinyLoraOnnx = runtime.load(bundle, data, engine="onnx", **options)
        return onnx
    # llama.cpp rounds a context up to this, and llama-cpp-python then overruns its own buffers.
    n_ctx = options["n_ctx"] = -(-n_ctx // _CONTEXT_STEP) * _CONTEXT_STEP
    if threads is not None:
        options["n_threads_batch"] = threads
    try:
        llama: TinyLoraLlama = runtime.load(bundle, data, engine="llama", **options)
    except ValueError as error:
        if isinstance(error, TinyLoraError):
            raise
        raise console.CommandError(
            f"llama.cpp cannot load {bundle} with a context of {n_ctx}: {error}"
        ) from error
    return llama


def _messages(system: str | None, prompt: str | None = None) -> list[dict[str, str]]:
    texts = {"system": system, "user": prompt}
    return [{"role": role, "content": text} for role, text in texts.items() if text is not None]


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and a history
    with suppress(EOFError):
        while True:
            yield input("> ")
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _state(vector: MicroVector | None) -> str:
    if vector is None:
        return "the base, without a vector"
    return f"{vector.values.size} {vector.dtype} values, norm {vector.norm:.4g}, sequence {vector.sequence}"


def _describe(vector: MicroVector | None) -> dict[str, Any] | None:
    if vector is None:
        return None
    return {
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "norm": vector.norm,
        "values": vector.values.tolist(),
    }
