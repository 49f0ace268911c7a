"""Parts that `run` and `chat` share: options, the model that they load, and its answer as it comes in."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import Policy, TinyLoraError
from . import console, vectors
from .options import EngineName, engine_options

if TYPE_CHECKING:
    from ..runtime import TinyLoraLlama, TinyLoraOnnx

RunnableArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a .gguf with <stem>.basis.gguf beside it.")
]
MaxTokensOption = Annotated[
    int, typer.Option(metavar="N", min=0, help="Longest answer in tokens; 0: until the context is full.")
]
TemperatureOption = Annotated[
    float, typer.Option(metavar="T", min=0, help="0 takes the likeliest token each time.")
]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, max=(1 << 32) - 2, help="Seed of the sampling.")]
ContextOption = Annotated[
    int, typer.Option("--n-ctx", metavar="N", min=0, help="Context in tokens; 0: the model's own.")
]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", help="A system message that comes first.")]

_CONTEXT_STEP = 256


class AnswerStream:
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
                "Shorten it (in a chat: /clear), or pass a larger --n-ctx"
            ) from error


def awaited(pieces: Iterator[str]) -> Iterator[str]:
    """Give the pieces of an answer; while the first is awaited, the terminal says why nothing comes."""
    with console.working("reading the prompt"):
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces


def load(
    bundle: Path,
    vector: str | None,
    n_ctx: int,
    threads: int | None,
    chosen: EngineName | None,
    policy: Policy,
    stream: str,
    gpu_layers: int | None = None,
) -> TinyLoraLlama | TinyLoraOnnx:
    """Return the model of a bundle, with a vector where one is named.

    Raises:
        CommandError: llama.cpp cannot load it with such a context.
        TinyLoraError: those of `runtime.load`.
        OSError: a file cannot be read.
    """
    data = vectors.read(vector) if vector is not None else None
    with console.working("loading the model"):
        return _load(bundle, data, n_ctx, threads, chosen, policy, stream, gpu_layers)


def _load(
    bundle: Path,
    data: bytes | None,
    n_ctx: int,
    threads: int | None,
    chosen: EngineName | None,
    policy: Policy,
    stream: str,
    gpu_layers: int | None,
) -> TinyLoraLlama | TinyLoraOnnx:
    from .. import runtime

    engine = runtime.engine_of(bundle, chosen.value if chosen else None)
    options: dict[str, Any] = {"n_ctx": n_ctx, "policy": policy, "stream": stream}
    options |= engine_options(engine, threads, gpu_layers)
    if engine == "onnx":
        onnx: TinyLoraOnnx = runtime.load(bundle, data, engine="onnx", **options)
        return onnx
    # llama.cpp rounds a context up to this, and llama-cpp-python then overruns its own buffers.
    n_ctx = options["n_ctx"] = -(-n_ctx // _CONTEXT_STEP) * _CONTEXT_STEP
    try:
        llama: TinyLoraLlama = runtime.load(bundle, data, engine="llama", **options)
    except ValueError as error:
        if isinstance(error, TinyLoraError):
            raise
        raise console.CommandError(
            f"llama.cpp cannot load {bundle} with a context of {n_ctx}: {error}"
        ) from error
    return llama


def messages(system: str | None, prompt: str | None = None) -> list[dict[str, str]]:
    """Return a system message and a user's, as far as they are given.

    Raises:
        CommandError: one of them is not UTF-8.
    """
    texts = {"system": (system, "the system message"), "user": (prompt, "the prompt")}
    return [
        {"role": role, "content": utf8(text, what)}
        for role, (text, what) in texts.items()
        if text is not None
    ]


def utf8(text: str, what: str) -> str:
    """Return a text that was typed, once it is checked: bytes that are not UTF-8 come in as surrogates.

    Raises:
        CommandError: it has some; `what` names it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise console.CommandError(
            f"{what} is not UTF-8: its character {error.start + 1} is {text[error.start]!r}. "
            "Pass it in UTF-8: iconv converts files"
        ) from None
    return text


def take_any_bytes() -> None:
    """Let stdin give bytes that are not UTF-8 as surrogates, as arguments have them, for `utf8` to name."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def write(text: str) -> None:
    """Write a piece of an answer to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
