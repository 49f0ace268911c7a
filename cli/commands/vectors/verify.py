"""`vector verify`: check a vector as a device would."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...shared import console, keyfiles, vectors
from ...shared.options import (
    BasisArgument,
    JsonOption,
    KeysOption,
    MacsOption,
    MarkStreamOption,
    MaxNormOption,
    Require,
    RequireOption,
    TodayOption,
    TrustOption,
    VectorArgument,
    VersionsOption,
)


def verify(
    source: VectorArgument,
    bundle: BasisArgument,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    require: RequireOption = None,
    max_norm: MaxNormOption = float("inf"),
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Refuse a sequence under the highest one that this file keeps."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="With --state: keep the sequence, as a device that applied it.")
    ] = False,
    stream: MarkStreamOption = "",
    versions: VersionsOption = None,
    today: TodayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a vector as a device would, and say why it is refused (exit code 1) or by which key it holds.

    \b
    Example:
      tinylora-edge vector verify v1.bin out/demo --key fleet.key.pub --require signature
    """
    if record and state is None:
        raise typer.BadParameter("only --state keeps a record", param_hint="--record")
    policy = keyfiles.policy(
        keys,
        macs,
        require,
        max_norm,
        state,
        keyless=Require.checksum,
        trust=trust,
        versions=versions,
        today=today,
    )
    basis = vectors.find_basis(bundle)
    data = vectors.read(source)
    stream = keyfiles.stream_of(stream)
    vector = policy.check(data, basis, stream=stream)
    if record:
        policy.record(vector, basis, stream=stream)
    facts: dict[str, Any] = {
        "accepted": True,
        **vectors.header(data),
        "dtype": vector.dtype,
        "count": basis.size,
        "key": vector.verified_by,
        "basis_digest": basis.digest,
        "norm": vector.norm,
        "recorded": record,
    }
    facts.pop("values_if", None)
    facts.pop("count_or", None)
    if as_json:
        console.print_json(facts)
        return
    tag = f"{facts['tag']} tag" if facts["form"] == "frame" else "raw payload, without a tag,"
    under = f" under {vector.verified_by}" if vector.verified_by else ""
    console.say(
        f"accepted: {tag} holds{under}; basis {basis.id}, sequence {vector.sequence}, "
        f"{f'until {vector.until}, ' if vector.until else ''}norm {vector.norm:.4g}"
        if facts["form"] == "frame"
        else f"accepted: a {tag} basis or sequence; norm {vector.norm:.4g}"
    )
