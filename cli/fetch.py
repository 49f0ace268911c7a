"""`fetch`: the newest frame of a stream, from where it was published."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..shipping import layout
from ..system import atomic_write
from ..wire import frame
from . import console, keyfiles, vectors
from .options import BasisArgument, JsonOption, KeysOption, PublishedStreamOption, StateOption


def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the folder that publish wrote to.")],
    bundle: BasisArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the vector goes.")],
    stream: PublishedStreamOption = layout.DEFAULT_STREAM,
    keys: KeysOption = None,
    keyring: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Trusted public keys with their streams and days, in JSON."),
    ] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the newest vector of a stream, check it, and only then replace FILE.

    Without a key a checksum is required, which says nothing about the sender.

    \b
    Example:
      tinylora-edge fetch https://example.org/vectors out/demo -o v.bin --key fleet.key.pub --state v.state
    """
    from ..shipping.fetch import fetch as fetch_frame

    policy = keyfiles.policy(keys, state, keyring=keyring, keyless="checksum")
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"{output.parent} is not a directory: make it first, or choose another output"
        )
    basis = vectors.find_basis(bundle)
    with console.progress(f"asking {url}"):
        got = fetch_frame(url, basis, stream)
    data = got.data
    assert data is not None  # no ETag was sent
    bound = layout.bound_name(stream)
    vector = policy.check(data, basis, stream=bound)
    changed = data != _present(output, frame.longest(basis.size))
    if changed:
        # The state is written once the new vector is on the disk under another name: no vector is in place
        # that the state does not know, and a kill between the two leaves the old one.
        try:
            with atomic_write(output) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                policy.record(vector, basis, stream=bound)
        except OSError as error:
            raise console.CommandError(
                f"{output} and the state could not be written: {error.strerror or error}"
            ) from error
    else:
        policy.record(vector, basis, stream=bound)
    facts: dict[str, Any] = {
        "vector": str(output),
        "changed": changed,
        **vectors.header(data),
        "key": vector.verified_by,
        "norm": vector.norm,
    }
    if as_json:
        console.print_json(facts)
        return
    under = f" under {vector.verified_by}" if vector.verified_by else ""
    console.prose(
        f"{'wrote' if changed else 'nothing new:'} {output}: {len(data)} bytes, sequence {vector.sequence}, "
        f"{facts['tag']} tag{under}"
    )


def _present(path: Path, limit: int) -> bytes:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read(limit + 1)
    return b""
