"""`vector pack`, `verify`, `text` and `qr`: what becomes of a vector between training and a device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ...._policy import Policy
from ....vector import MicroVector
from ....wire import tags, text
from ...shared import console, keyfiles, qr_image, vectors
from ...shared.vectors import Dtype


class Form(StrEnum):
    """Texts of a vector."""

    base64url = "base64url"
    hex = "hex"


class Correction(StrEnum):
    """Error correction of a QR code."""

    L = "L"
    M = "M"
    Q = "Q"
    H = "H"


_Source = Annotated[
    str, typer.Argument(metavar="FILE", help="The vector: bytes, text or a QR code; - is stdin.")
]
_Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle, or basis, that it is for.")]
_Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace an existing FILE.")]
_Json = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


def pack(
    source: _Source,
    bundle: _Bundle,
    output: _Output,
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
    sequence: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65535, help="Rises with every vector of one stream. [default: as it came]"
        ),
    ] = None,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Frame a vector for its way to a device: signed, with a MAC, or with a checksum.

    A vector that carries a tag already is checked under the same key first.

    \b
    Examples:
      tinylora-edge vector pack trained.bin smollm2 -o v1.bin --sign fleet.key --dtype bf16 --sequence 1
      tinylora-edge vector pack trained.bin smollm2 -o v1.bin --mac device-17.mac
    """
    if sign is not None and mac is not None:
        raise typer.BadParameter("a frame has one tag: pass --sign or --mac", param_hint="--mac")
    _refuse_json_on_stdout(output, as_json)
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
    found = Policy(keys=trusted).check(vectors.read(source), basis)
    made = MicroVector(
        found.values,
        found.dtype if dtype is None else dtype.value,
        found.sequence if sequence is None else sequence,
    )
    data = made.to_bytes(basis, tag=signer)
    vectors.write(output, data)
    if output == vectors.STREAM:
        return
    record = {
        "vector": output,
        **vectors.header(data),
        "key": "" if isinstance(signer, tags.Crc32) else tags.key_id(trusted[0]),
        "basis_digest": basis.digest,
        "norm": made.norm,
        "exact": bool((made.values == found.values).all()),
    }
    if as_json:
        console.print_json(record)
        return
    under = f" under {record['key']}" if record["key"] else ""
    console.say(
        f"wrote {output}: {len(data)} bytes, {basis.size} {made.dtype} values, norm {made.norm:.4g}, "
        f"sequence {made.sequence}, {tags.NAMES[signer.kind]}{under}"
    )


def verify(
    source: _Source,
    bundle: _Bundle,
    keys: keyfiles.Keys = None,
    macs: keyfiles.Macs = None,
    require: Annotated[
        keyfiles.Require, typer.Option(help="The least that the tag has to be.")
    ] = keyfiles.Require.checksum,
    max_norm: keyfiles.MaxNorm = float("inf"),
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Refuse a sequence under the highest one that this file keeps."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="With --state: keep the sequence, as a device that applied it.")
    ] = False,
    stream: keyfiles.Stream = "",
    as_json: _Json = False,
) -> None:
    """Check a vector as a device would, and say why it is refused (exit code 1) or by which key it holds.

    \b
    Example:
      tinylora-edge vector verify v1.bin smollm2 --key fleet.key.pub --require signature
    """
    if record and state is None:
        raise typer.BadParameter("only --state keeps a record", param_hint="--record")
    policy = keyfiles.policy(keys, macs, require, max_norm, state)
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
    if as_json:
        console.print_json(facts)
        return
    tag = f"{facts['tag']} tag" if facts["form"] == "frame" else "raw payload, without a tag,"
    under = f" under {vector.verified_by}" if vector.verified_by else ""
    console.say(
        f"accepted: {tag} holds{under}; basis {basis.id}, sequence {vector.sequence}, norm {vector.norm:.4g}"
        if facts["form"] == "frame"
        else f"accepted: a {tag} basis or sequence; norm {vector.norm:.4g}"
    )


def as_text(
    source: _Source,
    form: Annotated[Form, typer.Option(help="Which text.")] = Form.base64url,
    output: _Output = vectors.STREAM,
    scheme: Annotated[bool, typer.Option("--scheme", help="Put tinylora: before it, for a link.")] = False,
    force: _Force = False,
) -> None:
    """Write a vector as text, for an SMS, a chat or a DNS record. Every command reads it back.

    \b
    Example:
      tinylora-edge vector text v1.bin
    """
    data = vectors.read(source)
    vectors.header(data)
    line = text.encode(data, form.value, scheme=scheme)
    if output == vectors.STREAM:
        console.say(line)
        return
    vectors.check_target(output, force=force)
    vectors.write(output, f"{line}\n".encode())
    console.say(f"wrote {output}: {len(data)} bytes in {len(line)} characters of {form.value}")


def qr(
    source: _Source,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PNG", help="Write a picture instead.")
    ] = None,
    correction: Annotated[
        Correction, typer.Option(help="Error correction: L, M, Q and H survive a loss of 7, 15, 25 and 30 %.")
    ] = Correction.M,
    binary: Annotated[
        bool,
        typer.Option("--binary", help="The bytes themselves: a smaller code, that needs a reader for bytes."),
    ] = False,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Draw a vector as a QR code, on the terminal or as a PNG. Every command reads the picture back.

    The code holds tinylora: and the base64url text, which any camera reads.

    \b
    Examples:
      tinylora-edge vector qr v1.bin
      tinylora-edge vector qr v1.bin -o v1.png --correction Q
    """
    if as_json and output in (None, vectors.STREAM):
        raise typer.BadParameter(
            "stdout carries the code: pass -o FILE to have a report", param_hint="--json"
        )
    data = vectors.read(source)
    vectors.header(data)
    if output is not None:
        vectors.check_target(output, force=force)
    code = qr_image.make(data, level=correction.value, binary=binary)
    if output is None:
        console.stdout().print(qr_image.drawn(code), soft_wrap=True)
        return
    vectors.write(output, qr_image.png(code))
    if output == vectors.STREAM:
        return
    side = code.symbol_size(border=0)[0]
    if as_json:
        console.print_json(
            {
                "picture": output,
                "bytes": len(data),
                "version": code.version,
                "correction": correction.value,
                "modules": side,
                "content": "bytes" if binary else "text",
            }
        )
        return
    console.say(f"wrote {output}: {len(data)} bytes, QR code {code.designator}, {side} x {side} modules")


def _refuse_json_on_stdout(output: str, as_json: bool) -> None:
    if as_json and output == vectors.STREAM:
        raise typer.BadParameter(
            "stdout carries the vector: pass -o FILE to have a report", param_hint="--json"
        )
