"""`run`: one answer, with or without a micro-vector; and what `chat` has in common with it."""

from __future__ import annotations

import io
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from .. import Ed25519Verifier, Policy, TinyLoraError
from ..shipping import layout
from . import console, keyfiles, vectors
from .options import (
    BundleArgument,
    Engine,
    EngineOption,
    GpuLayersOption,
    KeysOption,
    StateOption,
    StreamOption,
    ThreadsOption,
    engine_options,
)

if TYPE_CHECKING:
    from ..runtime import TinyLoraLlama, TinyLoraOnnx

VectorOption = Annotated[
    str | None, typer.Option("--vector", metavar="FILE", help="The vector to apply. [default: the base]")
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

_CONTEXT_STEP = 256  # llama.cpp rounds a context up to this; llama-cpp-python then overruns its own buffers
_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


def run_prompt(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from stdin.")],
    vector: VectorOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    n_ctx: ContextOption = 2048,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    engine: EngineOption = None,
    system: SystemOption = None,
    keys: KeysOption = None,
    bundle_keys: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle-key",
            metavar="FILE",
            help="An Ed25519 public key that has to have signed the bundle. May be repeated: any of them.",
        ),
    ] = None,
    state: StateOption = None,
    stream: StreamOption = layout.DEFAULT_STREAM,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report the answer as JSON when it is done.")
    ] = False,
) -> None:
    """Ask once, and stream the answer to stdout.

    A signed vector, or one with a MAC, needs the key that it is checked under.

    \b
    Examples:
      tinylora-edge run out/demo --vector vector.bin "Describe the moon in one sentence."
      tinylora-edge run out/demo --vector v1.bin --key fleet.key.pub --state v.state "Describe the moon."
    """
    if vector == prompt == vectors.STREAM:
        raise typer.BadParameter("stdin carries the vector: pass PROMPT as an argument", param_hint="PROMPT")
    policy, signers = keyfiles.policy(keys, state), keyfiles.public_keys(bundle_keys)
    llm = load(bundle, vector, n_ctx, threads, engine, policy, layout.bound_name(stream), gpu_layers, signers)
    if prompt == vectors.STREAM:
        take_any_bytes()
        prompt = sys.stdin.read()
    start = time.perf_counter()
    chunks = llm.create_chat_completion(
        messages(system, prompt), stream=True, max_tokens=max_tokens, temperature=temperature, seed=seed
    )
    answer = AnswerStream()
    wrap = Wrapped(write) if sys.stdout.isatty() else None
    for piece in answer.awaited(chunks):
        if not as_json:
            wrap.add(piece) if wrap else write(piece)
    if wrap:
        wrap.end()
    if not as_json:
        write("" if answer.text.endswith("\n") else "\n")
        return
    active = llm.vector
    console.print_json(
        {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "chunks": answer.chunks,
            "seconds": round(time.perf_counter() - start, 3),
            "basis_digest": llm.basis.digest,
            "vector": None
            if active is None
            else {
                "dtype": active.dtype,
                "sequence": active.sequence,
                "norm": active.norm,
                "values": active.values.tolist(),
            },
        }
    )


def load(
    bundle: Path,
    vector: str | None,
    n_ctx: int,
    threads: int | None,
    chosen: Engine | None,
    policy: Policy,
    stream: str,
    gpu_layers: int | None,
    bundle_keys: Sequence[Ed25519Verifier] = (),
) -> TinyLoraLlama | TinyLoraOnnx:
    """Return the model of a bundle, with a vector where one is named.

    Raises:
        CommandError: llama.cpp has no context of that size.
        TinyLoraError: those of `runtime.load`.
        OSError: a file cannot be read.
    """
    from .. import runtime

    data = vectors.read(vector) if vector is not None else None
    engine = runtime.engine_of(bundle, chosen)
    if engine == "llama" and n_ctx % _CONTEXT_STEP:
        above = n_ctx - n_ctx % _CONTEXT_STEP + _CONTEXT_STEP
        raise console.CommandError(
            f"--n-ctx {n_ctx}: llama.cpp's contexts are multiples of {_CONTEXT_STEP} tokens: pass {above}"
        )
    options: dict[str, Any] = {"n_ctx": n_ctx, "policy": policy, "stream": stream, "bundle_keys": bundle_keys}
    options |= engine_options(engine, threads, gpu_layers)
    with console.progress("loading the model"):
        try:
            model: TinyLoraLlama | TinyLoraOnnx = runtime.load(bundle, data, engine=engine, **options)
        except ValueError as error:
            if isinstance(error, TinyLoraError):
                raise
            raise console.CommandError(
                f"llama.cpp cannot load {bundle} with a context of {n_ctx}: {error}"
            ) from error
    return model


class AnswerStream:
    """The text of a stream of completion chunks, as it comes in."""

    def __init__(self) -> None:
        self.text = ""
        self.chunks = 0
        self.finish_reason: str | None = None

    def awaited(self, chunks: Iterator[Any]) -> Iterator[str]:
        """Yield the pieces of text; while the first is awaited, the terminal says why nothing comes.

        Raises:
            CommandError: the prompt does not fit the context.
        """
        pieces = self._pieces(chunks)
        with console.progress("reading the prompt"):
            first = next(pieces, None)
        if first is not None:
            yield first
            yield from pieces

    def _pieces(self, chunks: Iterator[Any]) -> Iterator[str]:
        try:
            for chunk in chunks:
                choice = chunk["choices"][0]
                piece = choice["delta"].get("content")
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


def messages(system: str | None, prompt: str | None = None) -> list[dict[str, str]]:
    """Return a system message and a user's, as far as they are given.

    Raises:
        CommandError: one of them is not UTF-8.
    """
    found = []
    for role, text, what in (("system", system, "the system message"), ("user", prompt, "the prompt")):
        if text is None:
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes that are not UTF-8 come in as surrogates
            raise console.CommandError(
                f"{what} is not UTF-8: its character {error.start + 1} is {text[error.start]!r}. "
                "Pass it in UTF-8: iconv converts files"
            ) from None
        found.append({"role": role, "content": text})
    return found


def take_any_bytes() -> None:
    """Let stdin give bytes that are not UTF-8 as surrogates, as arguments do, for `messages` to name."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def write(text: str) -> None:
    """Write a piece of an answer to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Wrapped:
    """A text on a terminal that comes in by pieces, its lines broken between words.

    Args:
        write: writes text at once.
        columns: says how wide the terminal is now.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self._write, self._columns = write, columns
        self._blanks, self._word = "", ""  # what is held back: the word may go on
        self._begun = False  # the word is longer than a line may wait for, and its beginning is written
        self._column = 0

    def add(self, piece: str) -> None:
        """Take in more of the text; all but the last word is written."""
        for part in _PARTS.findall(piece):
            if not part.isspace():
                self._word += part
                if self._begun or cell_len(self._word) > self._columns() // 2:
                    self._put()
                    self._begun = True
                continue
            self._put()
            self._begun = False
            if part == "\n":
                self._write(part)
                self._blanks, self._column = "", 0
            else:
                self._blanks += part

    def end(self) -> None:
        """Write what is held back."""
        self._put()
        self._blanks, self._begun, self._column = "", False, 0

    def _put(self) -> None:
        room = max(self._columns() - 1, 1)
        if not self._word:
            return
        if not self._begun:
            if self._column and self._column + cell_len(self._blanks + self._word) > room:
                self._write("\n")
                self._column = 0
            else:
                self._write(self._blanks)
                self._column += cell_len(self._blanks)
            self._blanks = ""
        self._write(self._word)
        self._column += cell_len(self._word)
        if self._column > room:  # the terminal itself broke the word
            self._column %= room + 1
        self._word = ""
