"""`fetch`: the newest frame of a user, from where it was published."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..shipping.fetch import fetch as fetch_frame
from ..wire import frame, users
from ..writes import atomic_write
from . import console, keyfiles, vectors
from .options import BasisArgument, JsonOption, KeysOption, StateOption, UserOption


def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the folder that publish wrote to.")],
    bundle: BasisArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the vector goes.")],
    user: UserOption = users.DEFAULT_USER,
    keys: KeysOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the newest vector of a user, check it, and only then replace FILE.

    Without a key a checksum is required, which says nothing about the sender.

    \b
    Example:
      tinylora-edge fetch https://example.org/vectors out/demo -o v.bin --key fleet.key.pub --state v.state
    """
    policy = keyfiles.policy(keys, state)
    vectors.check_folder(output)
    bases, bound = vectors.find_bases(bundle), users.bound_name(user)
    with console.progress(f"asking {url}"):
        data = fetch_frame(url, bases, user).data
    assert data is not None  # no ETag was sent
    vector = policy.check(data, bases, user=bound)
    present = b""
    with suppress(FileNotFoundError), open(output, "rb") as old:
        present = old.read(frame.longest(bases.most) + 1)
    if data == present:
        policy.record(vector, bases.factors, user=bound)
    else:
        # The state is written once the new vector is on the disk under another name: no vector is in place
        # that the state does not know, and a kill between the two leaves the old one.
        try:
            with atomic_write(output) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                policy.record(vector, bases.factors, user=bound)
        except OSError as error:
            raise console.CommandError(
                f"{output} and the state could not be written: {error.strerror or error}"
            ) from error
    record: dict[str, Any] = {"vector": str(output), "changed": data != present, **vectors.header(data)}
    record |= {"count": len(vector.values), "key": vector.verified_by, "norm": vector.norm}
    under = f" under {vector.verified_by}" if vector.verified_by else ""
    summary = f"{output}: {len(data)} bytes, sequence {vector.sequence}, {record['tag']} tag{under}"
    console.report(record, as_json, f"{'wrote' if record['changed'] else 'nothing new:'} {summary}")
