"""`publish` and `fetch`: a user's frames to where devices get them, and the newest of them onto a device."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from ..shipping.bucket import shown
from ..shipping.fetch import fetch as fetch_frame
from ..shipping.fetch import frame_path
from ..shipping.publish import named
from ..shipping.publish import publish as publish_frame
from ..wire import tags
from ..wire.frame import DEFAULT_USER, bound_name
from ..writes import atomic_write, open_file
from . import console, keyfiles, vectors
from . import options as opts


def publish(
    source: opts.VectorArgument,
    bundle: opts.BasisArgument,
    to: Annotated[str, Option("--to", metavar="DIR|URL", help="A directory, or a URL for fsspec.")],
    user: opts.UserOption = DEFAULT_USER,
    as_json: opts.JsonOption = False,
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
    where = named(to)
    with console.progress(f"publishing to {where}"):
        done = publish_frame(data, bases, to, user=user)
    kind = vectors.header(data)["tag"]
    if kind == tags.NAMES[tags.CRC32]:
        console.warn("a checksum proves nothing about the sender: sign what you publish (pack --key)")
    record = {"target": where, **done._asdict(), "latest": frame_path(bases.id, user)}
    record |= {"bytes": len(data), "tag": kind}
    place = f"{where.rstrip('/')}/{done.path}, {len(data)} bytes, sequence {done.sequence}, {kind}"
    console.report(record, as_json, f"{'published' if done.changed else 'was there already:'} {place}")


def fetch(
    url: Annotated[str, Argument(metavar="URL", help="The folder that publish wrote to.")],
    bundle: opts.BasisArgument,
    output: opts.RunFrameOption,
    user: opts.UserOption = DEFAULT_USER,
    keys: opts.KeysOption = None,
    state: opts.StateOption = None,
    as_json: opts.JsonOption = False,
) -> None:
    """Fetch the newest vector of a user, check it, and only then replace FILE.

    Without --key a vector needs only a checksum, which says nothing about the sender.

    \b
    Example:
      tinylora-edge fetch https://example.org/vectors out/demo -o v.bin --key fleet.key.pub --state v.state
    """
    if state is not None and state.resolve() == output.resolve():
        raise BadParameter("the vector goes there: name another file", param_hint="--state")
    policy = keyfiles.policy(keys, state)
    vectors.check_folder(output)
    bases, bound = vectors.find_bases(bundle), bound_name(user)
    with console.progress(f"asking {shown(url)}"):
        data = fetch_frame(url, bases, user).data
    assert data is not None  # no ETag was sent
    vector = policy.check(data, bases, user=bound)
    before = b""
    with suppress(FileNotFoundError), open_file(output) as file:
        before = file.read(len(data) + 1)
    if changed := before != data:
        # The state is written once the new vector is on the disk under another name: the state knows every
        # vector that is in place, and a kill between the two leaves the old one.
        with atomic_write(output) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            policy.record(vector)
    else:
        policy.record(vector)
    record: dict[str, Any] = {"vector": str(output), "changed": changed, **vectors.header(data)}
    record |= {"count": len(vector.values), "key": vector.verified_by, "norm": vector.norm}
    under = f" under {vector.verified_by}" if vector.verified_by else ""
    summary = f"{output}: {len(data)} bytes, sequence {vector.sequence}, {record['tag']} tag{under}"
    console.report(record, as_json, f"{'wrote' if changed else 'nothing new:'} {summary}")
