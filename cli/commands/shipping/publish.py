"""`publish`: frames to where devices get them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....shipping import layout
from ....wire import tags
from ...shared import console, keyfiles, vectors
from ...shared.options import BasisArgument, JsonOption, PublishedStreamOption


def publish(
    source: Annotated[str, typer.Argument(metavar="FILE", help="The frame; - is stdin.")],
    bundle: BasisArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="DIR|URL", help="A directory, or what fsspec can write to.")
    ],
    stream: PublishedStreamOption = layout.DEFAULT_STREAM,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign", metavar="FILE", help="Say with this Ed25519 private key that the frame is the newest."
        ),
    ] = None,
    mac: Annotated[
        str | None, typer.Option("--mac", metavar="KEY", help="Say it with this MAC key instead.")
    ] = None,
    fresh_days: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many days that holds, today being the first.")
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """Publish a frame as the newest of its stream, where any web server can serve it.

    It becomes <basis id>/<stream>/<sequence>.bin and <basis id>/<stream>/latest under DIR. With the key that
    made the frame's tag a statement is written beside it, that this is the newest vector: so that devices
    notice a server that is frozen. Publish the same frame again before the statement ends.

    \b
    Examples:
      tinylora-edge publish v1.bin out/demo --to /srv/vectors --sign fleet.key
      tinylora-edge publish v1.bin out/demo --to s3://bucket/vectors --stream alice
    """
    from ....shipping.publish import publish as publish_frame

    if sign is not None and mac is not None:
        raise typer.BadParameter("a statement has one tag: pass --sign or --mac", param_hint="--mac")
    signer = keyfiles.signer(sign) if sign is not None else keyfiles.mac(mac) if mac is not None else None
    basis = vectors.find_basis(bundle)
    data = vectors.read(source)
    with console.working(f"publishing to {to}"):
        done = publish_frame(data, basis, to, stream=stream, signer=signer, fresh_days=fresh_days)
    kind = vectors.header(data)["tag"]
    if kind == tags.NAMES[tags.CRC32]:
        console.warn(
            "a checksum proves nothing about the sender, and a server may be anybody: sign what you publish "
            "(vector pack --sign)"
        )
    if as_json:
        console.print_json(
            {
                "target": to,
                "path": done.path,
                "latest": layout.latest(basis.id, stream),
                "sequence": done.sequence,
                "bytes": len(data),
                "tag": kind,
                "changed": done.changed,
                "fresh_until": None if done.fresh_until is None else done.fresh_until.isoformat(),
            }
        )
        return
    what = "published" if done.changed else "was there already:"
    console.prose(f"{what} {to.rstrip('/')}/{done.path}, {len(data)} bytes, sequence {done.sequence}, {kind}")
    if done.fresh_until is not None:
        console.prose(
            f"it is said to be the newest until {done.fresh_until}: publish it again before that day is over"
        )
