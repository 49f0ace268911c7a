"""`serve`: an OpenAI-compatible server in which every request has its user's vector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from tinylora_edge.serve import ApiKeys, Limits

from . import console, keyfiles, vectors
from . import options as opts

_LIMITS = Limits()


def serve(
    bundle: opts.BundleArgument,
    store: opts.StoreOption = None,
    host: Annotated[str, Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: opts.PortOption = 8000,
    under: opts.UnderOption = None,
    name: Annotated[str | None, Option(metavar="NAME", help="Name of the model.")] = None,
    api_keys: Annotated[
        Path | None, Option(metavar="FILE", help="A file with a key on each line, or a key and its user.")
    ] = None,
    keys: opts.KeysOption = None,
    bundle_keys: opts.BundleKeysOption = None,
    feedback: Annotated[bool, Option("--feedback", help="Learn from clicks, kept in --store.")] = False,
    sign: Annotated[
        Path | None, Option(metavar="FILE", help="Private key that signs vectors learned from clicks.")
    ] = None,
    engine: opts.EngineOption = None,
    slots: Annotated[int, Option(metavar="N", min=1, help="Answers that are generated at a time.")] = 16,
    n_ctx: Annotated[
        int, Option("--n-ctx", metavar="N", min=1, help="Most tokens of prompt and answer.")
    ] = opts.CONTEXT,
    threads: opts.ThreadsOption = None,
    max_requests: Annotated[int, Option(metavar="N", min=1, help="Most open requests.")] = _LIMITS.requests,
    max_body: Annotated[int, Option(metavar="BYTES", min=1, help="Most bytes of a body.")] = _LIMITS.body,
    max_tokens: Annotated[int, Option(metavar="N", min=1, help="Most tokens of an answer.")] = _LIMITS.tokens,
    drain: Annotated[
        float,
        Option(
            metavar="SECONDS",
            min=0,
            help="After SIGTERM: time with /health at 503 in which requests are taken.",
        ),
    ] = 0.0,
    grace: Annotated[
        float,
        Option(metavar="SECONDS", min=0, help="After that: time for running answers and clicks to end."),
    ] = 30.0,
) -> None:
    """Answer OpenAI's clients over HTTP, each request with its user's vector.

    For the model NAME, the base answers. NAME@USER answers with the vector that the store has for USER. A
    client may also send a vector along, as "vector" in the body or in the header X-TinyLora-Vector. Vectors
    are checked at every request. --under lies beneath every user's vector, and not beneath the base.

    \b
    Examples:
      tinylora-edge serve out/demo --store users.db --key fleet.key.pub
      tinylora-edge serve out/demo --store users.db --host 0.0.0.0 --api-keys keys.txt
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "demo@alice", "messages": [{"role": "user", "content": "Hello!"}]}'
    """
    from tinylora_edge.serve import app, check_exposure, run

    check_exposure(host, has_keys=api_keys is not None)
    if api_keys is not None:
        keyfiles.warn_if_others_read(api_keys)
    with console.progress("loading the model"):
        made = app(
            bundle,
            store=store,
            under=None if under is None else vectors.read(str(under)),
            name=name,
            keys=keyfiles.verifiers(keys),
            bundle_keys=keyfiles.public_keys(bundle_keys),
            api_keys=None if api_keys is None else ApiKeys.read(api_keys),
            limits=Limits(requests=max_requests, body=max_body, tokens=max_tokens),
            feedback=feedback,
            signer=None if sign is None else keyfiles.signer(sign),
            engine=engine,
            slots=slots,
            n_ctx=n_ctx,
            n_threads=threads,
        )
    model = made.state.service.name

    run(
        made,
        host=host,
        port=port,
        ready=lambda url: console.say(f"serving {model} at {url}/v1"),
        drain=drain,
        grace=grace,
    )
