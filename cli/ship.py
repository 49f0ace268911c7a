"""`publish` and `fetch`: frames to the place where devices or servers get them, and onto a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Exit, Option

from tinylora_edge import Bases, Policy
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.shipping.bucket import shown
from tinylora_edge.shipping.fetch import fetch as fetch_frame
from tinylora_edge.shipping.fetch import frame_path
from tinylora_edge.shipping.publish import named, published
from tinylora_edge.shipping.publish import publish as publish_frame
from tinylora_edge.wire import tags
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name
from tinylora_edge.writes import atomic_write, open_file

from . import console, keyfiles, vectors
from . import options as opts

_SHOWN = 10  # refusals that are printed; --json has all


def publish(
    source: opts.VectorArgument,
    bundle: opts.BasisArgument,
    to: Annotated[
        str | None, Option("--to", metavar="DIR|URL", help="The directory to publish in, or a bucket's URL.")
    ] = None,
    store: opts.StoreOption = None,
    user: opts.UserOption = DEFAULT_USER,
    keys: opts.KeysOption = None,
    as_json: opts.JsonOption = False,
) -> None:
    """Publish a frame as the newest of its user: where any web server can serve it, or in a server's store.

    With --to, the frame is written to <factors id>/<user>/<sequence>.bin and <factors id>/<user>/latest under
    DIR. With --store, it is checked as a server with the same --key checks it. FILE may then be a directory
    that --to or train wrote: the newest frame of each user is stored, unless the store has a newer one.

    \b
    Examples:
      tinylora-edge publish v1.bin out/demo --to /srv/vectors
      tinylora-edge publish v1.bin out/demo --to s3://bucket/vectors --user alice
      tinylora-edge publish /srv/vectors out/demo --store users.db --key fleet.key.pub
    """
    if (to is None) == (store is None):
        raise BadParameter("pass one of the two", param_hint="--to, --store")
    bases = vectors.find_bases(bundle)
    if store is not None:
        many = os.path.isdir(source)
        if many and user != DEFAULT_USER:
            raise BadParameter(
                f"the folder {source} names its users: leave the option out", param_hint="--user"
            )
        frames = published(source, bases) if many else iter([(user, vectors.read(source))])
        _put(frames, bases, store, keys, as_json)
        return
    assert to is not None
    if keys:
        raise BadParameter(
            "keys check what goes into a store; devices check published frames with their own",
            param_hint="--key",
        )
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


def _put(
    frames: Iterator[tuple[str, bytes]], bases: Bases, where: str, keys: list[Path] | None, as_json: bool
) -> None:
    """Put frames into a servers' store, and print which were refused."""
    from tinylora_edge.serve.store import Store, Stored

    trusted, stored, refused = keyfiles.verifiers(keys), 0, dict[str, TinyLoraError]()
    with console.progress(f"storing in {shown(where)}") as bar, closing(Store(where, bases)) as store:
        for user, found in store.put_many(frames, Policy(keys=trusted, state=store.sequences)):
            if isinstance(found, Stored):
                stored += 1
                bar(f"{stored:,} stored")
            else:
                refused[user] = found
    total = stored + len(refused)
    if total == 1 and refused:
        raise refused.popitem()[1]
    if not trusted:
        console.warn("a checksum proves nothing about the sender: pass the key that signed (--key)")
    summary = f"{stored:,} of {console.counted(total, 'vector')} stored in {shown(where)}"
    reasons = {user: str(error) for user, error in refused.items()}
    rows = [("refused", f"{len(refused):,}"), *list(reasons.items())[:_SHOWN]] if refused else []
    record = {"store": shown(where), "stored": stored, "refused": reasons}
    console.report(record, as_json, summary, rows=rows)
    if refused and not stored:
        raise Exit(1)


def fetch(
    url: Annotated[str, Argument(metavar="URL", help="The folder or bucket that publish wrote to.")],
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
        # The state is written when the new vector is on the disk, but under another name. So the state knows
        # each vector that is in place, and a kill between the two steps leaves the old vector there.
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
