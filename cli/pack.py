"""`pack`: a vector made ready for its way to a device: framed, signed, as text or as a QR code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import Basis, CheckedVector, ChecksumError, MicroVector, Policy, SignatureError
from ..wire import tags, text
from . import console, keyfiles, qr, vectors
from .options import Dtype, JsonOption, VectorArgument

_OF_A_FRAME = "it says how the vector is framed, which takes its BUNDLE: name it"


def pack(
    source: VectorArgument,
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="The bundle, or basis, that it is for: to frame it anew."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")
    ] = vectors.STREAM,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sign with this private key, or add a MAC under this MAC key."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type that the values travel in. [default: as they came]")
    ] = None,
    sequence: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65535, help="Rises with every vector of one stream. [default: as it came]"
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The stream that it is for: in another one it is refused."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="The last day on which it may be accepted, as 2026-12-31, in UTC."),
    ] = None,
    as_text: Annotated[
        bool, typer.Option("--text", help="Write base64url, for an SMS, a chat or a DNS record.")
    ] = False,
    as_qr: Annotated[
        bool, typer.Option("--qr", help="Write a QR code: on the terminal, or into FILE.png or FILE.svg.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Frame a vector for its way to a device: checksum, MAC or signature; bytes, text or QR code.

    Without BUNDLE the bytes stay, and only their form changes. A vector that carries a tag already is checked
    under the same key first.

    \b
    Examples:
      tinylora-edge pack trained.bin out/demo -o v1.bin --key fleet.key --dtype bf16 --sequence 1
      tinylora-edge pack trained.bin out/demo -o v2.bin --key fleet.key --stream al --until 2026-12-31
      tinylora-edge pack v1.bin --qr -o v1.png
    """
    if as_text and as_qr:
        raise typer.BadParameter("--text and --qr are two forms: pass one", param_hint="--qr")
    framing = {"--key": key, "--dtype": dtype, "--sequence": sequence, "--stream": stream, "--until": until}
    for option, value in framing.items():
        if bundle is None and value is not None:
            raise typer.BadParameter(_OF_A_FRAME, param_hint=option)
    vectors.refuse_report(output, as_json)
    if not ((as_text or as_qr) and output == vectors.STREAM):
        vectors.check_target(output)
    signer = None if key is None else keyfiles.signing_key(key)
    last = None if until is None else keyfiles.day(until, "--until")
    data = vectors.read(source)
    record: dict[str, Any] = {}
    if bundle is not None:
        basis = vectors.find_basis(bundle)
        bound = keyfiles.stream_of(stream or "")
        found = _check(data, basis, signer, bound)
        made = MicroVector(
            found.values,
            found.dtype if dtype is None else dtype.value,
            found.sequence if sequence is None else sequence,
        )
        data = made.to_bytes(basis, tag=signer or tags.Crc32(), stream=bound, until=last)
        record = {
            "key": "" if signer is None else signer.id,
            "basis_digest": basis.digest,
            "norm": made.norm,
            "exact": bool((made.values == found.values).all()),
        }
    record = {"vector": output, **vectors.header(data), **record}
    if as_text:
        line = text.encode(data)
        if output == vectors.STREAM:
            console.say(line)
            return
        vectors.write(output, f"{line}\n".encode())
    elif as_qr:
        code = qr.make(data)
        if output == vectors.STREAM:
            console.stdout().print(qr.drawn(code), soft_wrap=True)
            return
        vectors.write(output, qr.picture(code, output))
    else:
        vectors.write(output, data)
        if output == vectors.STREAM:
            return
    if as_json:
        console.print_json(record)
        return
    form = " as text" if as_text else " as a QR code" if as_qr else ""
    parts = [f"wrote {output}: {len(data)} bytes{form}"]
    if record["form"] == "frame":
        under = f" under {record['key']}" if record.get("key") else ""
        parts += [f"{record['count']} {record['dtype']} values", f"sequence {record['sequence']}"]
        parts += [f"until {record['until']}"] if "until" in record else []
        parts += [f"{record['tag']}{under}"]
    console.prose(", ".join(parts))


def _check(data: bytes, basis: Basis, signer: Any, stream: str) -> CheckedVector:
    """Return the vector: of the default stream, as `train` leaves it, or of the one it is packed for."""
    trusted = [] if signer is None else [keyfiles.verifier_of(signer)]
    policy = Policy("none", keys=trusted, today=None)  # what is over may be packed anew
    try:
        return policy.check(data, basis)
    except (ChecksumError, SignatureError):
        if not stream:
            raise
        return policy.check(data, basis, stream=stream)
