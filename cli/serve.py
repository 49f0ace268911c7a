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
        Path | None, Option(metavar="FILE", help="A file with a key in each line, or a key and its user.")
    ] = None,
    keys: opts.KeysOption = None,
    bundle_keys: opts.BundleKeysOption = None,
    feedback: Annotated[bool, Option("--feedback", help="Learn from clicks, kept in the store.")] = False,
    sign: Annotated[Path | None, Option(metavar="FILE", help="Sign learned vectors with it.")] = None,
    engine: opts.EngineOption = None,
    slots: Annotated[int, Option(metavar="N", min=1, help="Answers that run at a time.")] = 16,
    n_ctx: Annotated[int, Option("--n-ctx", metavar="N", min=1, help="Tokens of a request.")] = opts.CONTEXT,
    threads: opts.ThreadsOption = None,
    max_requests: Annotated[int, Option(metavar="N", min=1, help="Open requests.")] = _LIMITS.requests,
    max_body: Annotated[int, Option(metavar="BYTES", min=1, help="Bytes of a request.")] = _LIMITS.body,
    max_tokens: Annotated[int, Option(metavar="N", min=1, help="Tokens of an answer.")] = _LIMITS.tokens,
    drain: Annotated[
        float, Option(metavar="SECONDS", min=0, help="After SIGTERM: /health is 503, requests are taken.")
    ] = 0.0,
    grace: Annotated[float, Option(metavar="SECONDS", min=0, help="Then: running answers may end.")] = 30.0,
) -> None:
    """Answer OpenAI's clients over HTTP, each request with its user's vector.

    A client asks for MODEL, the base; for MODEL@USER, whose vector the store has; or sends a vector along, as
    "vector" in the body or as X-TinyLora-Vector in the header. A vector is checked at every request, and lies
    on top of --under's; MODEL has neither.

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
