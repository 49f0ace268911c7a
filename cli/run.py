"""`run`: one answer, with or without a vector; and the functions that `chat` also uses."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from tinylora_edge import TinyLoraError
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, vectors
from . import options as opts

if TYPE_CHECKING:
    from tinylora_edge.runtime import TinyLoraLlama, TinyLoraOnnx
    from tinylora_edge.tasks import Prompt


def run_prompt(
    bundle: opts.BundleArgument,
    prompt: Annotated[str, Argument(metavar="PROMPT", help="What to ask; - reads it from stdin.")],
    vector: opts.VectorsOption = None,
    max_tokens: opts.MaxTokensOption = 256,
    temperature: opts.TemperatureOption = 0.0,
    seed: opts.SeedOption = 0,
    n_ctx: opts.ContextOption = opts.CONTEXT,
    threads: opts.ThreadsOption = None,
    engine: opts.EngineOption = None,
    system: opts.MessageOption = None,
    schema: Annotated[
        str | None, Option(metavar="FILE", help="Constrain the answer to this JSON schema.")
    ] = None,
    keys: opts.KeysOption = None,
    bundle_keys: opts.BundleKeysOption = None,
    state: opts.StateOption = None,
    user: opts.UserOption = DEFAULT_USER,
    as_json: Annotated[bool, Option("--json", help="Report the answer as JSON.")] = False,
) -> None:
    """Ask once, and stream the answer to stdout.

    A signed vector, or one with a MAC, needs --key to check it.

    \b
    Examples:
      tinylora-edge run out/demo --vector vector.bin "Describe the moon in one sentence."
      tinylora-edge run out/demo --vector v1.bin --key fleet.key.pub --state v.state "Describe the moon."
    """
    from tinylora_edge.tasks import read_schema

    if prompt == vectors.STREAM in (vector or ()):
        raise BadParameter("stdin has the vector: pass PROMPT as an argument", param_hint="PROMPT")
    if schema == "label":
        raise console.CommandError(
            "--schema label takes the labels from DATA, which run does not have: pass a file"
        )
    held_to = None if schema is None else read_schema(schema)
    policy, signers = keyfiles.policy(keys, state), keyfiles.public_keys(bundle_keys)
    frames = vectors.read_stack(vector)
    with console.progress("loading the model"):
        rules: dict[str, Any] = {"policy": policy, "user": bound_name(user), "bundle_keys": signers}
        llm = opts.load_model(bundle, engine, threads, n_ctx=n_ctx, vector=frames, **rules)
    if prompt == vectors.STREAM:
        prompt = sys.stdin.read()
    start = time.perf_counter()
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    conversation = prompt if system is None else messages(system, prompt)
    if held_to is None:
        text, reason = answer(llm, conversation, show=not as_json, **options)
    else:
        options |= {"max_tokens": max_tokens or None, "schema": held_to}
        text, reason = asyncio.run(held(llm, conversation, n_ctx, threads, show=not as_json, **options))
    if not as_json:
        write("" if text.endswith("\n") else "\n")
        return
    seconds, active = round(time.perf_counter() - start, 3), llm.vector
    names = "basis", "dtype", "sequence", "norm"
    found = active and {name: getattr(active, name) for name in names} | {"values": active.values.tolist()}
    console.print_json({"text": text, "finish_reason": reason, "seconds": seconds, "vector": found})


def answer(
    llm: TinyLoraLlama | TinyLoraOnnx,
    prompt: Prompt,
    *,
    show: bool = True,
    stopped: Sequence[int] = (),
    **options: Any,
) -> tuple[str, str | None]:
    """Answer a prompt until the end, or until `stopped` is not empty; return the text and why it ended."""
    text, reason = "", None
    tokens, ends = llm.encode(prompt)  # as in training and measuring, also where there is no chat template
    chunks: Any = llm.create_completion(tokens, stop=ends, stream=True, **options)
    try:
        with console.progress("reading the prompt"):
            chunk = next(chunks, None)
        while chunk is not None and not stopped:
            choice = chunk["choices"][0]
            text, reason = text + choice["text"], choice["finish_reason"] or reason
            if show:
                write(choice["text"])
            chunk = next(chunks, None)
    except (TinyLoraError, UnicodeError):
        raise
    except ValueError as error:
        raise console.CommandError(
            f"no room: {error}. Shorten the prompt (in a chat /clear), or raise --n-ctx"
        ) from error
    finally:
        chunks.close()
    return text, reason


async def held(
    llm: TinyLoraLlama | TinyLoraOnnx,
    prompt: Prompt,
    n_ctx: int,
    threads: int | None,
    *,
    show: bool,
    **options: Any,
) -> tuple[str, str | None]:
    """Answer as `answer` does, but in a pool, as `serve` does, where a schema can constrain the answer."""
    from tinylora_edge.runtime import Pool

    text, size = "", min(n_ctx or llm.longest, llm.longest)
    with Pool(llm, slots=1, n_ctx=size, n_threads=threads) as pool:
        stream = pool.stream(prompt, vector=llm.vector, **options)
        async for piece in stream:
            text += piece.text
            if show:
                write(piece.text)
    return text, stream.finish.reason if stream.finish else None


def messages(system: str | None, prompt: str | None = None) -> list[dict[str, str]]:
    """Return a system message and a user's, those that are given."""
    parts = ("system", system), ("user", prompt)
    return [{"role": role, "content": text} for role, text in parts if text is not None]


def write(text: str) -> None:
    """Write a piece of an answer to stdout, at once."""
    sys.stdout.write(console.harmless(text))
    sys.stdout.flush()
