"""`vector pack`: frame a vector for its way to a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .... import Basis, CheckedVector, ChecksumError, MicroVector, Policy, SignatureError
from ....wire import tags
from ...shared import console, keyfiles, vectors
from ...shared.options import BasisArgument, Dtype, ForceOption, JsonOption, OutputOption, VectorArgument


def pack(
    source: VectorArgument,
    bundle: BasisArgument,
    output: OutputOption,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="FILE", help="Sign with this Ed25519 private key, in PEM."),
    ] = None,
    mac: Annotated[
        str | None,
        typer.Option("--mac", metavar="KEY", help="Add a MAC under this key: a file, or hexadecimal digits."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type that the values travel in. [default: as they came]")
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Multiply the values: below 1 it does less, and leaves more as it was.",
        ),
    ] = 1.0,
    sequence: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65535, help="Rises with every vector of one stream. [default: as it came]"
        ),
    ] = None,
    stream: Annotated[
        str,
        typer.Option(
            "--stream",
            metavar="NAME",
            help="The stream that it is for: in another one it is refused. [default: default]",
        ),
    ] = "",
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="The last day on which it may be accepted, as 2026-12-31, in UTC."),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=3,
            help="Of the frame; 1, for old readers, is of any stream. [default: 3 with --until, or 2]",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Frame a vector for its way to a device: signed, with a MAC, or with a checksum.

    A vector that carries a tag already is checked under the same key first. It may be of the default stream,
    as what train, tune and distill leave, or of the one that --stream names.

    \b
    Examples:
      tinylora-edge vector pack trained.bin out/demo -o v1.bin --sign fleet.key --dtype bf16 --sequence 1
      tinylora-edge vector pack trained.bin out/demo -o v2.bin --sign fleet.key --stream al --until 2026-12-31
      tinylora-edge vector pack trained.bin out/demo -o v1.bin --mac device-17.mac
      tinylora-edge vector pack trained.bin out/demo -o gentle.bin --scale 0.6
    """
    if sign is not None and mac is not None:
        raise typer.BadParameter("a frame has one tag: pass --sign or --mac", param_hint="--mac")
    if not 0 < scale < math.inf:
        raise typer.BadParameter(f"a scale is a number above 0, not {scale:g}", param_hint="--scale")
    vectors.refuse_report(output, as_json)
    vectors.check_target(output, force=force)
    signer: tags.Signer = tags.Crc32()
    trusted: list[tags.Verifier] = []
    if sign is not None:
        private = keyfiles.signer(sign)
        signer, trusted = private, [tags.Ed25519Verifier(private.public_key)]
    elif mac is not None:
        key = keyfiles.mac(mac)
        signer, trusted = key, [key]
    basis = vectors.find_basis(bundle)
    stream = keyfiles.stream_of(stream)
    last = None if until is None else keyfiles.day(until, "--until")
    found = _check(vectors.read(source), basis, trusted, stream)
    wanted = found.values * np.float32(scale)
    made = MicroVector(
        wanted,
        found.dtype if dtype is None else dtype.value,
        found.sequence if sequence is None else sequence,
    )
    data = made.to_bytes(basis, tag=signer, stream=stream, until=last, version=version)
    vectors.write(output, data)
    if output == vectors.STREAM:
        return
    record = {
        "vector": output,
        **vectors.header(data),
        "key": "" if isinstance(signer, tags.Crc32) else tags.key_id(trusted[0]),
        "basis_digest": basis.digest,
        "norm": made.norm,
        "exact": bool((made.values == wanted).all()),
    }
    if as_json:
        console.print_json(record)
        return
    under = f" under {record['key']}" if record["key"] else ""
    console.prose(
        f"wrote {output}: {len(data)} bytes, {vectors.summary(made)}, "
        f"sequence {made.sequence}, {f'until {last}, ' if last else ''}{tags.NAMES[signer.kind]}{under}"
    )


def _check(data: bytes, basis: Basis, trusted: list[tags.Verifier], stream: str) -> CheckedVector:
    policy = Policy("none", keys=trusted, today=None)  # what is over may be packed anew
    try:
        return policy.check(data, basis)
    except (ChecksumError, SignatureError):
        if not stream:
            raise
        return policy.check(data, basis, stream=stream)
