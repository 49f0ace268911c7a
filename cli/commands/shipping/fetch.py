"""`fetch`: the newest frame of a stream, from where it was published."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .... import Basis, StaleError, TransferError
from ....documents import parse_json
from ....shipping import layout
from ....system import atomic_write
from ....trust import TrustFile
from ....wire import frame
from ....wire.freshness import Freshness, believed
from ...shared import console, keyfiles, vectors
from ...shared.options import (
    BasisArgument,
    JsonOption,
    KeysOption,
    MacsOption,
    MaxNormOption,
    PublishedStreamOption,
    Require,
    RequireOption,
    StateOption,
    TodayOption,
    TrustOption,
    VersionsOption,
)


class Fresh(StrEnum):
    """What becomes of a vector that may not be the newest."""

    warn = "warn"
    require = "require"
    ignore = "ignore"


def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the folder that publish wrote to.")],
    bundle: BasisArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the vector goes.")],
    stream: PublishedStreamOption = layout.DEFAULT_STREAM,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    require: RequireOption = None,
    max_norm: MaxNormOption = float("inf"),
    state: StateOption = None,
    versions: VersionsOption = None,
    today: TodayOption = None,
    fresh: Annotated[
        Fresh,
        typer.Option(help="What to do where no trusted key says that this is the newest vector, with a key."),
    ] = Fresh.warn,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long it may take in all.")
    ] = 300.0,
    attempts: Annotated[int, typer.Option(metavar="N", min=1, help="How often to ask at most.")] = 5,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Follow redirects from public to private addresses too."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the newest vector of a stream, check it, and only then replace FILE.

    Without a key at least a checksum is required. FILE.fetched beside it remembers the server's ETag: where
    nothing is new, nothing is sent. With --trust the published trust file is fetched first, and replaces the
    device's if it may follow it. With a key, a statement of the sender's is asked for too, unless the last
    one in --state still holds: without one, a server that shows an old vector for ever is not noticed.

    \b
    Example:
      tinylora-edge fetch https://example.org/vectors out/demo -o v.bin --key fleet.key.pub --state v.state
    """
    from ....shipping.fetch import fetch as fetch_frame
    from ....shipping.fetch import fetch_statement

    policy = keyfiles.policy(
        keys,
        macs,
        require,
        max_norm,
        state,
        keyless=Require.checksum,
        trust=trust,
        versions=versions,
        today=today,
    )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"{output.parent} is not a directory: make it first, or choose another output"
        )
    basis = vectors.find_basis(bundle)
    end = time.monotonic() + deadline
    line: dict[str, Any] = {"attempts": attempts, "allow_private": allow_private}
    told: dict[str, Any] | None = None
    with console.working(f"asking {url}"):
        if trust is not None:
            told = _fetch_trust(trust, url, deadline=deadline, **line)
            deadline = max(end - time.monotonic(), 0.0)
        present, etag = _remembered(output, basis, url, stream)
        got = fetch_frame(url, basis, stream, etag=etag, deadline=deadline, **line)
    data = present if got.data is None else got.data
    assert data is not None
    bound = keyfiles.stream_of(stream)
    vector = policy.check(data, basis, stream=bound)

    def statement() -> bytes | None:
        return fetch_statement(url, basis, stream, deadline=max(end - time.monotonic(), 0.1), **line)

    stale = ""
    if fresh is not Fresh.ignore and (vector.verified_by or fresh is Fresh.require):
        stale = _staleness(policy.freshness(basis, stream=bound), vector.sequence, statement)
    if stale:
        said = f"the server's vector may not be the newest: {stale}"
        if fresh is Fresh.require:
            raise StaleError(f"{said}. {output} stays as it was")
        console.warn(f"{said}. --fresh require refuses it")
    changed = data != present
    record = partial(policy.record, vector, basis, stream=bound)
    if changed:
        _write(output, data, first=record)
    else:
        record()
    _remember(output, data, basis, url, stream, got.etag)
    facts: dict[str, Any] = {
        "vector": str(output),
        "changed": changed,
        "not_modified": got.data is None,
        "attempts": got.attempts,
        **vectors.header(data),
        "key": vector.verified_by,
        "norm": vector.norm,
        "stale": stale,
    }
    if told is not None:
        facts["trust"] = told
    if as_json:
        console.print_json(facts)
        return
    if told is not None and told["changed"]:
        console.prose(f"took {trust}: root {told['root']}, list {told['list']}")
    under = f" under {vector.verified_by}" if vector.verified_by else ""
    console.prose(
        f"{'wrote' if changed else 'nothing new:'} {output}: {len(data)} bytes, sequence {vector.sequence}, "
        f"{facts.get('tag', 'no')} tag{under}"
    )


def _staleness(freshness: Freshness, sequence: int, statement: Callable[[], bytes | None]) -> str:
    """Return why a vector may not be the newest; empty where it is. A statement is fetched if one is due."""
    why = ""
    if freshness.due():
        try:
            why = believed(freshness, statement())
        except TransferError as error:
            why = str(error)
    problem = freshness.problem(sequence)
    return f"{problem} ({why})" if problem and why else problem


def _fetch_trust(path: Path, url: str, **options: Any) -> dict[str, Any]:
    """Replace the device's trust file where a newer one is published, and say what is believed now.

    Before the vector: what was revoked since must not vouch for it.
    """
    from ....shipping.fetch import fetch_trust

    file = TrustFile(path)
    have = file.trust
    whose = {"url": url, "root": have.root.version, "list": have.keys.version}
    memory = _memory(path)
    got = fetch_trust(url, etag=_etag_of(memory, whose), **options)
    try:
        changed = got.data is not None and file.accept(got.data)
    except OSError as error:
        raise console.CommandError(f"{path} could not be written: {error.strerror or error}") from error
    now = file.trust
    facts: dict[str, Any] = {"root": now.root.version, "list": now.keys.version}
    if got.etag is not None:
        _write(memory, json.dumps({"url": url, **facts, "etag": got.etag}).encode())
    return facts | {"changed": changed}


def _etag_of(memory: Path, whose: dict[str, Any]) -> str | None:
    """Return the ETag that was remembered, if it is of what is there."""
    try:
        with open(memory, "rb") as file:
            found = parse_json(file.read(1 << 16))
        etag = found.pop("etag")
        return etag if found == whose and isinstance(etag, str) else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None  # without it the whole file is fetched


def _remembered(output: Path, basis: Basis, url: str, stream: str) -> tuple[bytes | None, str | None]:
    """What is in the output, and the ETag that the server gave for it, if both belong together."""
    limit = frame.longest(basis.size)
    try:
        with open(output, "rb") as file:
            present = file.read(limit + 1)
    except FileNotFoundError:
        return None, None
    return present, _etag_of(_memory(output), _whose(present, basis, url, stream))


def _remember(output: Path, data: bytes, basis: Basis, url: str, stream: str, etag: str | None) -> None:
    if etag is not None:
        text = json.dumps({**_whose(data, basis, url, stream), "etag": etag})
        _write(_memory(output), text.encode())


def _whose(data: bytes, basis: Basis, url: str, stream: str) -> dict[str, str]:
    return {
        "url": url,
        "basis": basis.digest,
        "stream": stream,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _memory(output: Path) -> Path:
    return output.with_name(f"{output.name}.fetched")


def _write(path: Path, data: bytes, first: Callable[[], None] | None = None) -> None:
    """Replace a file; `first` is what comes before, once the new content is on the disk under another name.

    So a disk that is full is noticed before the state is written, and no vector is in place that the state
    does not know. A kill between the two leaves the old vector, which the state refuses until the next
    fetch.
    """
    try:
        with atomic_write(path) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if first is not None:
                try:
                    first()
                except OSError as error:
                    raise console.CommandError(
                        f"the state could not be written: {error.strerror or error}; {path} stays as it was"
                    ) from error
    except OSError as error:
        raise console.CommandError(f"{path} could not be written: {error.strerror or error}") from error
