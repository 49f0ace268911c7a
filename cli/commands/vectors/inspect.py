"""`vector inspect`: what a vector is, and with a bundle, whether it is sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .... import Policy
from ...shared import console, keyfiles, vectors
from ...shared.options import JsonOption, KeysOption, MacsOption, MarkStreamOption, TrustOption


def inspect_vector(
    source: Annotated[str, typer.Argument(metavar="FILE", help="The vector; - is stdin.")],
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="The bundle, or basis, to verify it against.")
    ] = None,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    stream: MarkStreamOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what a vector is; with BUNDLE, verify it and show its values.

    \b
    Example:
      tinylora-edge vector inspect vector.bin out/demo
    """
    verify = ("vector", "inspect", source, "BUNDLE")
    print_vector(source, bundle, as_json, verify, keys, macs, trust, stream)


def print_vector(
    source: str,
    basis_path: Path | None,
    as_json: bool,
    verify: Sequence[object],
    keys: Sequence[Path] | None = None,
    macs: Sequence[str] | None = None,
    trust: Path | None = None,
    stream: str = "",
) -> None:
    """Print what a vector is; with a basis, after verifying it under the keys.

    Args:
        source: a file, or `-` for stdin.
        basis_path: where the basis is; None: nothing is verified.
        as_json: print JSON.
        verify: words of the command that verifies the vector, for who named no basis.
        keys: files of trusted public keys.
        macs: trusted MAC keys.
        trust: a trust file, or None.
        stream: which stream of vectors it belongs to.

    Raises:
        VectorError: it was refused.
    """
    data = vectors.read(source)
    basis = vectors.find_basis(basis_path) if basis_path is not None else None
    # The basis judges first: its messages name the lengths that it expects.
    trusted = keyfiles.verifiers(keys, macs)
    vector = None
    if basis is not None:  # without a clock: also what is no longer accepted can be looked at
        policy = Policy("none", keys=trusted, trust=trust, today=None)
        vector = policy.check(data, basis, stream=keyfiles.stream_of(stream))
    record = {"kind": "vector", "verified": vector is not None, **vectors.header(data)}
    if vector is not None and basis is not None:
        record.pop("values_if", None)
        record.pop("count_or", None)
        record |= {
            "dtype": vector.dtype,
            "basis_id": basis.id,
            "basis_digest": basis.digest,
            "groups": basis.groups,
            "u": basis.u,
            "count": basis.size,
            "norm": vector.norm,
            "values": vector.values.tolist(),
        }
        if basis.axes:
            record["axes"] = list(basis.axes)
    if as_json:
        console.print_json(record)
        return
    console.facts(list(_vector_rows(record).items()))
    if vector is None:
        console.next_command(*verify)
    elif "axes" in record:
        named = zip(record["axes"], vector.values.reshape(-1), strict=True)
        console.facts([(name, f"{x: .6g}") for name, x in named])
    else:
        console.facts(
            [(f"group {g}", "  ".join(f"{x: .6g}" for x in row)) for g, row in enumerate(record["values"])]
        )


def _vector_rows(record: dict[str, Any]) -> dict[str, str]:
    verified = record["verified"]
    rows = {"form": f"{record['form']}, {record['bytes']} bytes"}
    if record["form"] == "raw":
        rows["tag"] = "none: a raw payload has no tag, basis or sequence"
    else:
        rows["version"] = str(record["version"])
        rows["tag"] = f"{record['tag']}, {'verified' if verified else 'not checked'}"
        rows["sequence"] = str(record["sequence"])
        if "until" in record:
            rows["until"] = f"{record['until']}, the last day on which it may be accepted"
    if verified:
        rows["basis"] = record["basis_digest"]
        rows["values"] = f"{record['count']} {record['dtype']} ({record['groups']} groups x u {record['u']})"
        rows["norm"] = f"{record['norm']:.6g}"
    elif record["form"] == "raw":
        rows["values"] = " or ".join(f"{count} {dtype}" for dtype, count in record["values_if"].items())
    else:
        rows["basis"] = f"{record['basis_id']}..."
        or_else = f" or {record['count_or']}" if "count_or" in record else ""
        rows["values"] = f"{record['count']}{or_else} {record['dtype']}"
    return rows
