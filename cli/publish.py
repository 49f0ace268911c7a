"""`publish`: frames to where devices get them."""

from __future__ import annotations

from typing import Annotated

import typer

from ..shipping import layout
from ..shipping.publish import publish as publish_frame
from ..wire import tags, users
from . import console, vectors
from .options import BasisArgument, JsonOption, UserOption, VectorArgument


def publish(
    source: VectorArgument,
    bundle: BasisArgument,
    to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="A directory, or what fsspec reaches.")],
    user: UserOption = users.DEFAULT_USER,
    as_json: JsonOption = False,
) -> None:
    """Publish a frame as the newest of its user, where any web server can serve it.

    It becomes <factors id>/<user>/<sequence>.bin and <factors id>/<user>/latest under DIR.

    \b
    Examples:
      tinylora-edge publish v1.bin out/demo --to /srv/vectors
      tinylora-edge publish v1.bin out/demo --to s3://bucket/vectors --user alice
    """
    bases = vectors.find_bases(bundle)
    data = vectors.read(source)
    with console.progress(f"publishing to {to}"):
        done = publish_frame(data, bases, to, user=user)
    kind = vectors.header(data)["tag"]
    if kind == tags.NAMES[tags.CRC32]:
        console.warn("a checksum proves nothing about the sender: sign what you publish (pack --key)")
    record = {
        "target": to,
        "path": done.path,
        "latest": layout.latest(bases.id, user),
        "sequence": done.sequence,
        "bytes": len(data),
        "tag": kind,
        "changed": done.changed,
    }
    where = f"{to.rstrip('/')}/{done.path}, {len(data)} bytes, sequence {done.sequence}, {kind}"
    console.report(record, as_json, f"{'published' if done.changed else 'was there already:'} {where}")
