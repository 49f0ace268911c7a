"""`pack`: a vector framed for its way to a device, signed, and written as bytes, text or QR code."""

from __future__ import annotations

import io
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from typer import Argument, BadParameter, Option

from tinylora_edge import AdmittedVector, Bases, ChecksumError, MicroVector, Policy, SignatureError
from tinylora_edge.shipping.links import qr_code
from tinylora_edge.wire import frame, tags, text
from tinylora_edge.wire.frame import DEFAULT_USER, FIRST_DAY, bound_name

from . import console, keyfiles, vectors
from . import options as opts

_PIXELS = 8  # width of a QR code's module in a picture, which a phone reads from 20 cm


def _day(written: str) -> date:
    try:
        return date.fromisoformat(written)
    except ValueError:
        raise BadParameter(f"{written!r} is not a date: write it as 2026-12-31") from None


def pack(
    source: opts.VectorArgument,
    bundle: Annotated[
        Path | None, Argument(metavar="BUNDLE", help="The bundle of the vector; needed to frame it again.")
    ] = None,
    output: opts.OutputOption = vectors.STREAM,
    key: Annotated[Path | None, Option(metavar="FILE", help="Private key or MAC key to sign with.")] = None,
    dtype: Annotated[opts.Dtype | None, Option(help="Type of the values. [default: unchanged]")] = None,
    sequence: Annotated[
        int | None,
        Option(
            metavar="N", min=0, max=65535, help="Sequence of the frame; it rises with each vector of a user."
        ),
    ] = None,
    user: opts.UserOption = DEFAULT_USER,
    until: Annotated[
        date | None,
        Option(metavar="DATE", parser=_day, help="The last day on which the vector is accepted, in UTC."),
    ] = None,
    as_text: Annotated[bool, Option("--text", help="Write base64url, for an SMS or a chat.")] = False,
    as_qr: Annotated[
        bool, Option("--qr", help="Write a QR code: on the terminal, FILE.png or FILE.svg.")
    ] = False,
    as_json: opts.JsonOption = False,
) -> None:
    """Frame a vector for its way to a device: checksum, MAC or signature; bytes, text or QR code.

    Without BUNDLE, the bytes of the frame stay the same, and only their form changes. A vector that is
    already signed is first checked with the same key.

    \b
    Examples:
      tinylora-edge pack trained.bin out/demo -o v1.bin --key fleet.key --dtype bf16 --sequence 1
      tinylora-edge pack trained.bin out/demo -o v2.bin --key fleet.key --user al --until 2026-12-31
      tinylora-edge pack v1.bin --qr -o v1.png
    """
    if as_text and as_qr:
        raise BadParameter("--text and --qr are two forms of the output: pass one of them", param_hint="--qr")
    bound = bound_name(user)
    framing = {"key": key, "dtype": dtype, "sequence": sequence, "user": bound or None, "until": until}
    for option, value in framing.items():
        if bundle is None and value is not None:
            why = "the option frames the vector again, which needs its BUNDLE: name it"
            raise BadParameter(why, param_hint=f"--{option}")
    printed = (as_text or as_qr) and output == vectors.STREAM and not as_json
    if not printed:
        vectors.check_target(output, as_json=as_json)
    signer = None if key is None else keyfiles.signing_key(key)
    data = vectors.read(source)
    record: dict[str, Any] = {}
    if bundle is not None:
        bases = vectors.find_bases(bundle)
        found = _check(data, bases, signer, bound)
        basis = bases.of(found)
        number = found.sequence if sequence is None else sequence
        made: MicroVector = found
        if dtype is not None and dtype != found.dtype:
            made = MicroVector(found.values, dtype, basis=basis.digest, entries=basis.entries)
        last = until or found.until
        data = made.to_bytes(basis, signer or tags.Crc32(), user=bound, until=last, sequence=number)
        record = {"count": basis.size, "key": "" if signer is None else signer.id, "basis": basis.digest}
        record |= {"projection": basis.projection.descriptor, "norm": made.norm}
        record["exact"] = bool((made.values == found.values).all())
    record = {"vector": output, **vectors.header(data), **record}
    if as_qr and printed:
        half_blocks = io.StringIO()  # spaces are dark modules, whatever colours the terminal has
        qr_code(data).terminal(half_blocks, border=2, compact=True)
        shown = Text(half_blocks.getvalue(), style="#ffffff on #000000", end="")
        console.stdout().print(shown, soft_wrap=True)
    elif as_text:
        vectors.write(output, f"{text.encode(data)}\n".encode())
    else:
        vectors.write(output, _qr_picture(data, output) if as_qr else data)
    if output != vectors.STREAM:
        form = " as text" if as_text else " as a QR code" if as_qr else ""
        console.report(record, as_json, f"wrote {output}{form}", rows=console.flat(record))


def _check(
    data: bytes, known: Bases, signer: tags.Ed25519Signer | tags.Hmac | None, user: str
) -> AdmittedVector:
    """Return the vector of a frame that is bound to the default user, as `train` writes it, or to `user`."""
    tagged = frame.head(data).kind != tags.CRC32
    keys = keyfiles.verifier(signer) if tagged else []
    policy = Policy(keys=keys, today=FIRST_DAY)  # a vector whose last day is over may be packed again
    try:
        return policy.check(data, known)
    except (ChecksumError, SignatureError):
        if not user:
            raise
        return policy.check(data, known, user=user)


def _qr_picture(data: bytes, name: str) -> bytes:
    kind = Path(name).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise console.CommandError(f"{name} is no name for a QR code's picture: let it end in .png or .svg")
    out = io.BytesIO()
    qr_code(data).save(out, kind=kind, scale=_PIXELS)
    return out.getvalue()
