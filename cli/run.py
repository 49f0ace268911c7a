"""`run`: one answer, with or without a micro-vector."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from .. import MicroVector
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
    utf8,
    write,
)
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


def run_prompt(
    bundle: RunnableArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from stdin.")],
    vector: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The vector to apply; - is stdin. [default: none, the base]"),
    ] = None,
    max_tokens: MaxTokensOption = 256,
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
      tinylora-edge run out/demo --vector vector.bin "Describe the moon in one sentence."
      tinylora-edge run out/demo --vector v1.bin --key fleet.key.pub --state v.state "Describe the moon."
    """
    if vector == prompt == vectors.STREAM:
        raise typer.BadParameter("stdin carries the vector: pass PROMPT as an argument", param_hint="PROMPT")
    if raw_prompt and system is not None:
        raise typer.BadParameter("a raw prompt has no system message", param_hint="--system")
    policy = keyfiles.policy(keys, state, bundle_keys)
    llm = load(bundle, vector, n_ctx, threads, engine, policy, keyfiles.stream_of(stream), gpu_layers)
    if prompt == vectors.STREAM:
        take_any_bytes()
        prompt = sys.stdin.read()
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    start = time.perf_counter()
    if raw_prompt:
        chunks = llm.create_completion(utf8(prompt, "the prompt"), stream=True, **options)
    else:
        chunks = llm.create_chat_completion(messages(system, prompt), stream=True, **options)
    answer = AnswerStream()
    wrap = Wrapped(write, columns) if sys.stdout.isatty() and not raw_prompt else None
    for piece in awaited(answer.stream(chunks)):
        if not as_json:
            wrap.add(piece) if wrap else write(piece)
    if wrap:
        wrap.end()
    seconds = time.perf_counter() - start
    if not as_json:
        write("" if answer.text.endswith("\n") else "\n")
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


def _describe(vector: MicroVector | None) -> dict[str, Any] | None:
    if vector is None:
        return None
    return {
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "norm": vector.norm,
        "values": vector.values.tolist(),
    }
