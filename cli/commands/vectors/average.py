"""`vector average`: one vector of many users', with clipping and noise by choice."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .... import Basis, MicroVector, Policy, VectorError, privacy
from ....average import average as mean_of
from ....average import kept, sensitivity
from ....system import check_path
from ...shared import console, keyfiles, vectors
from ...shared.options import (
    Dtype,
    ForceOption,
    JsonOption,
    KeysOption,
    MacsOption,
    OutputOption,
    Require,
    TrustOption,
)


class Adjacency(StrEnum):
    """Differences between two neighbouring sets of users, as `average` names them."""

    replace_one = "replace-one"
    add_or_remove = "add-or-remove"


def average(
    ctx: typer.Context,
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The users' vectors, one each; - is stdin.")
    ],
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="BUNDLE", help="The bundle, or basis, that they are all for.")
    ],
    output: OutputOption,
    clip: Annotated[
        float, typer.Option(metavar="NORM", help="Scale longer vectors down to this Euclidean norm.")
    ] = float("inf"),
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise-multiplier", metavar="Z", help="Noise of Z times what one user can move the mean by."
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="As much noise as (E, --delta) privacy takes.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(metavar="D", help="Less than 1 over the number of users.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Averages that the same user may be part of.")
    ] = 1,
    adjacency: Annotated[
        Adjacency,
        typer.Option(help="What one user more or less, or another one, changes: see docs/FEEDBACK.md."),
    ] = Adjacency.replace_one,
    prior: Annotated[
        bool, typer.Option("--prior", help="Take noise out again by the prior of the basis: same privacy.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="LIST", help="A weight for each vector, separated by commas.")
    ] = None,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="NAME", help="The stream of all vectors; or, repeated, that of each in turn."
        ),
    ] = None,
    require: Annotated[
        Require, typer.Option(help="The least that every vector's tag has to be.")
    ] = Require.checksum,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type that the mean travels in. [default: the vectors']")
    ] = None,
    sequence: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65535, help="Of the mean. [default: the highest and one]"),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Average vectors of one basis: federated averaging, one vector a user.

    Every vector is verified first, and one that is refused stops the whole. --clip, with --noise-multiplier
    or with --epsilon and --delta, makes the mean differentially private.

    \b
    Examples:
      tinylora-edge vector average a.bin b.bin c.bin --bundle out/demo -o mean.bin
      tinylora-edge vector average *.bin --bundle out/demo -o mean.bin --clip 0.3 --epsilon 4 --delta 1e-4
    """
    if noise is not None and epsilon is not None:
        raise typer.BadParameter("pass --noise-multiplier or --epsilon, not both", ctx=ctx)
    if epsilon is not None and delta is None:
        raise typer.BadParameter("--epsilon needs --delta", param_hint="--epsilon")
    if delta is not None and not noise and epsilon is None:
        raise typer.BadParameter("without noise there is no delta", param_hint="--delta")
    vectors.refuse_report(output, as_json)
    shares = _parse(weights) if weights is not None else None
    vectors.check_target(output, force=force)
    z = noise or 0.0
    if epsilon is not None and delta is not None:
        z = privacy.noise_multiplier(epsilon, delta, rounds=rounds)
    elif z and delta is not None:
        epsilon = privacy.epsilon(z, delta, rounds=rounds)
    policy = Policy(require.value, keys=keyfiles.verifiers(keys, macs), trust=trust)
    basis = vectors.find_basis(bundle)
    if prior and basis.prior is None:
        raise console.CommandError(
            f"basis {basis.id} has no prior: leave --prior out, or learn a basis (tinylora-edge learn)"
        )
    names = [keyfiles.stream_of(name) for name in streams or [""]]
    if len(names) not in (1, len(sources)):
        raise typer.BadParameter(
            f"there are {len(sources)} vectors, but {len(names)} streams", param_hint="--stream"
        )
    given = _read(sources, basis, policy, names * (len(sources) // len(names)))
    made = mean_of(
        given,
        weights=shares,
        clip=clip,
        noise_multiplier=z,
        adjacency=adjacency.value,
        prior=basis.prior if prior else None,
        dtype=None if dtype is None else dtype.value,
        sequence=sequence,
    )
    data = made.to_bytes(basis)
    vectors.write(output, data)
    if output == vectors.STREAM:
        return
    clipped = sum(vector.norm > clip for vector in given)
    record: dict[str, Any] = {
        "vector": output,
        "bytes": len(data),
        "vectors": len(given),
        "basis_digest": basis.digest,
        "dtype": made.dtype,
        "sequence": made.sequence,
        "norm": made.norm,
        "clip": clip if clip < float("inf") else None,
        "noise": None,
    }
    if z:
        reach = sensitivity(clip, count=len(given), weights=shares, adjacency=adjacency.value)
        record["noise"] = {
            "multiplier": z,
            "standard_deviation": z * reach,
            "sensitivity": reach,
            "adjacency": adjacency.value,
            "rounds": rounds,
            "epsilon": epsilon,
            "delta": delta,
        }
        if prior and basis.prior:
            record["noise"]["kept"] = kept(z * reach, basis.prior)
    else:  # with noise the number of those clipped would tell of the users
        record["clipped"] = clipped
    if as_json:
        console.print_json(record)
    else:
        _say(record)


def _say(record: dict[str, Any]) -> None:
    console.prose(
        f"wrote {record['vector']}: the mean of {console.counted(record['vectors'], 'vector')}, "
        f"{record['bytes']} bytes in "
        f"{record['dtype']}, norm {record['norm']:.4g}, sequence {record['sequence']}, CRC-32"
    )
    if record["noise"] is None:
        if record["clip"] is not None:
            console.say(f"{record['clipped']} of them clipped to norm {record['clip']:g}; no noise")
        return
    noise = record["noise"]
    console.say(
        f"clipped to norm {record['clip']:g}; noise of standard deviation {noise['standard_deviation']:.4g} "
        f"on every value, {noise['multiplier']:.4g} times what one user moves the mean by "
        f"({noise['adjacency']})"
    )
    if "kept" in noise:
        console.say(
            f"the prior took noise out: {noise['kept']:.0%} of the noisy mean is kept, and the rest is the "
            "prior's mean"
        )
    if noise["delta"] is not None:
        over = "" if noise["rounds"] == 1 else f" over {noise['rounds']} rounds"
        console.say(
            f"({noise['epsilon']:.4g}, {noise['delta']:g})-differentially private for each user{over}"
        )


def _read(sources: list[str], basis: Basis, policy: Policy, streams: list[str]) -> list[MicroVector]:
    seen: set[object] = set()
    found: list[MicroVector] = []
    for source, stream in zip(sources, streams, strict=True):
        check_path(source, console.CommandError)
        same = source if source == vectors.STREAM else Path(source).resolve()
        if same in seen:
            raise console.CommandError(f"{source} is named twice: every user's vector counts once")
        seen.add(same)
        try:
            found.append(policy.check(vectors.read(source), basis, stream=stream))
        except VectorError as error:
            error.args = (f"{source}: {error}",)  # it keeps its class, and what else it says
            raise
    return found


def _parse(weights: str) -> list[float]:
    try:
        return [float(word) for word in re.split(r"[,\s]+", weights) if word]
    except ValueError as error:
        raise typer.BadParameter(
            f"{error}: pass numbers, separated by commas", param_hint="--weights"
        ) from None
