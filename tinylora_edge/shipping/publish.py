"""The sender's side: `publish` writes a frame into the tree of files that devices fetch from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ..basis import Bases
from ..errors import TransferError, VectorError
from ..limits import VECTOR_FILE_BYTES
from ..wire import frame as wire
from ..wire import tags
from ..wire.frame import DEFAULT_USER, bound_name, is_portable
from ..writes import atomic_write, locked, open_file
from .bucket import Bucket, shown
from .fetch import frame_path

_ADDRESS = re.compile(r"(?:[^/]{2,})?:/")  # not C:/


class Published(NamedTuple):
    """A published frame: its numbered file, under the target, and whether it was not there already."""

    path: str
    sequence: int
    changed: bool


def publish(frame: bytes, bases: Bases, to: str, *, user: str = DEFAULT_USER) -> Published:
    """Publish a frame as the newest of its user.

    A sequence below the newest one's is refused, as devices would refuse it; so is an equal one with other
    bytes, of which devices would keep whichever they saw first. The numbered file is written first and
    `latest` last, so that `latest` is always a whole frame; doing it again completes what was interrupted.
    Let one host publish for a user: that two do so at the same moment is not noticed. Its processes wait for
    each other.

    Args:
        frame: as `MicroVector.to_bytes` returns it. A CRC-32 is checked here, other tags by the devices.
        to: a directory, or an address that fsspec can write to (`s3://bucket/vectors`, `sftp://...`), without
            a password: fsspec takes it from the environment (`FSSPEC_FTP_PASSWORD`), or from its own files.
        user: whose vectors; the frame is bound to this name, that of the default user to none.

    VectorError: the bytes are no frame of these bases and this user, damaged, or past their last day.
    TransferError: the sequence was used, or the address cannot be read or written; OSError: the directory
    cannot. MissingExtraError: the address needs fsspec, which is not installed.
    """
    basis = bases.of_frame(frame)
    decoded = wire.decode(frame, basis.size, basis.digest, basis.entries)
    sequence = decoded.head.sequence
    if decoded.head.until is not None:
        wire.check_day(decoded.head.until, wire.utc_today)
    if not to:
        raise TransferError("the target is an empty text: name a directory, or an address")
    if decoded.head.kind == tags.CRC32:
        wire.check_tag(decoded, bound_name(user), basis.digest, ())
    target, to = Bucket(to) if _ADDRESS.match(to) else _Directory(to), named(to)
    latest, numbered = (frame_path(bases.id, user, number) for number in (None, sequence))
    with target.alone(latest):
        newest, there = target.read(latest), target.read(numbered)
        if newest is not None:
            try:
                found = wire.head(newest).sequence
            except VectorError:
                raise TransferError(f"{to}/{latest} is not a frame of these factors: remove it") from None
            if found > sequence:
                lower = f"{to}/{latest} has sequence {found}, and this frame {sequence}"
                raise TransferError(f"{lower}: pack it with --sequence {found + 1}")
            if there is None and found == sequence:  # somebody removed the numbered file
                there = newest if newest != frame else None
        if there not in (None, frame):
            raise TransferError(
                f"another frame with sequence {sequence} lies in {to}: pack it with --sequence {sequence + 1}"
            )
        if there is None:
            target.write(numbered, frame)
        if newest != frame:
            target.write(latest, frame)
            if target.read(latest) != frame:
                raise TransferError(f"{to}/{latest} was written, and something else is read there")
    return Published(numbered, sequence, there is None or newest != frame)


def published(folder: str | PathLike[str], bases: Bases) -> Iterator[tuple[str, bytes]]:
    """Yield user and newest frame, unchecked, of a directory that `publish` wrote to, by name.

    TransferError: it has none for these factors. OSError: it cannot be read.
    """
    home = Path(folder) / bases.id
    if not home.is_dir():
        raise TransferError(f"{folder} has no vectors of these factors, which would lie in {home}")
    target = _Directory(str(folder))
    for user in sorted(filter(is_portable, os.listdir(home))):
        if (frame := target.read(frame_path(bases.id, user))) is not None:
            yield user, frame


def named(to: str) -> str:
    """Return a target to show: a directory as it is, an address as `shown` has it."""
    return shown(to) if _ADDRESS.match(to) else to


class _Directory:
    """A directory on this machine. A write is whole and durable."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def read(self, path: str) -> bytes | None:
        try:
            with open_file(self._root / path) as file:
                return file.read(VECTOR_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        full = self._root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(full) as file:
            file.write(data)

    @contextmanager
    def alone(self, path: str) -> Iterator[None]:
        """Keep other processes of this machine from publishing there while the block runs."""
        full = self._root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        with locked(full, keep=False):
            yield
