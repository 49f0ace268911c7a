"""The sender's end: `publish` puts a frame into the static layout that devices fetch from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..basis import Basis
from ..errors import MissingExtraError, TransferError
from ..limits import VECTOR_FILE_BYTES
from ..system import atomic_write
from ..wire import frame as wire
from ..wire import tags
from . import layout
from .layout import DEFAULT_STREAM


@dataclass(frozen=True)
class Published:
    """The place of a published frame.

    Attributes:
        path: of the numbered frame, under the target.
        sequence: of the frame.
        changed: False where it was there already.
    """

    path: str
    sequence: int
    changed: bool


class Target(Protocol):
    """A place for small files: a directory, or what fsspec reaches."""

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None where there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Make a file, or replace it; readers see the old content or the new."""


def publish(
    frame: bytes,
    basis: Basis,
    to: str,
    *,
    stream: str = DEFAULT_STREAM,
) -> Published:
    """Publish a frame as the newest of its stream.

    The rules:

    1. It is a frame of this basis and this stream, whole. A CRC-32 is checked here; devices check the others.
    2. Its sequence is not lower than the newest one's, and an equal one has the same bytes: devices would
       refuse the first, and keep whichever they saw of the second.
    3. The numbered file is written first and `latest` last, so that whatever interrupts it, `latest` is a
       whole frame: the old one or the new one. Doing it again completes it.
    Two writers of one stream at the same moment are not told apart: let one host publish a stream.

    Args:
        frame: as `MicroVector.to_bytes` returns it.
        basis: that it is for.
        to: a directory, or an address that fsspec can write to (`s3://bucket/vectors`, `sftp://...`).
        stream: which stream of vectors. The frame is bound to its name, and to none in the default one.

    Raises:
        TransferError: a rule is broken, or the target cannot be read or written.
        VectorError: the bytes are no frame of this basis and stream, or damaged.
        MissingExtraError: the address needs fsspec, or a package of it, that is not installed.
    """
    decoded = wire.decode(frame, basis.size, basis.digest)
    if decoded.sequence is None or decoded.kind is None:
        raise TransferError(
            "a raw payload has no basis and no sequence, and so no place in the layout: publish a frame "
            "(`MicroVector.to_bytes` makes one)"
        )
    if decoded.kind == tags.CRC32:
        wire.check_tag(decoded, layout.bound_name(stream), bytes.fromhex(basis.digest), ())
    target = open_target(to)
    latest = layout.latest(basis.id, stream)
    numbered = layout.numbered(basis.id, stream, decoded.sequence)
    newest, there = target.read(latest), target.read(numbered)
    if newest is not None:
        _check_order(newest, decoded.sequence, basis, f"{to}/{latest}")
    if there is not None and there != frame:
        raise _used(decoded.sequence, f"{to}/{numbered}")
    if there is None:
        # Somebody may have removed the numbered one.
        if newest is not None and newest != frame and wire.sequence_of(newest) == decoded.sequence:
            raise _used(decoded.sequence, f"{to}/{latest}")
        target.write(numbered, frame)
    if newest != frame:
        target.write(latest, frame)
    return Published(numbered, decoded.sequence, there is None or newest != frame)


def _check_order(newest: bytes, sequence: int, basis: Basis, where: str) -> None:
    if len(newest) < wire.HEADER_BYTES[wire.BOUND] or newest[1:5] != bytes.fromhex(basis.id):
        raise TransferError(f"{where} is no frame of basis {basis.id}: remove it, or publish elsewhere")
    found = wire.sequence_of(newest)
    if found > sequence:
        raise TransferError(
            f"{where} has sequence {found}, and this frame {sequence}: devices that applied the newer one "
            f"would refuse it. Frame it with sequence={found + 1} or higher"
        )


def _used(sequence: int, where: str) -> TransferError:
    return TransferError(
        f"{where} is another frame with sequence {sequence}: a sequence is used once. Frame this vector with "
        f"sequence={sequence + 1} or higher"
    )


def open_target(to: str) -> Target:
    """Return the target that a directory or an address names.

    Raises:
        TransferError: it cannot be written to.
        MissingExtraError: it needs a package that is not installed.
    """
    if "://" not in to:
        return Directory(Path(to))
    scheme = to.partition("://")[0]
    if scheme in ("http", "https"):
        raise TransferError(
            f"{to} is where devices fetch from, and HTTP has no one way to write there: publish to the "
            "directory or bucket behind it"
        )
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError(f"publishing to {scheme}://", "fsspec", "ship") from None
    try:
        filesystem, root = fsspec.core.url_to_fs(to)
    except ImportError as error:
        raise TransferError(f"{to}: fsspec needs another package for {scheme}://: {error}") from None
    except ValueError as error:
        raise TransferError(f"{to}: {error}") from None
    return Remote(filesystem, root, to)


class Directory:
    """A directory on this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None where there is none."""
        try:
            with open(self._root / path, "rb") as file:
                return file.read(VECTOR_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TransferError(f"{self._root / path} cannot be read: {error.strerror or error}") from error

    def write(self, path: str, data: bytes) -> None:
        """Make a file, or replace it, durably."""
        full = self._root / path
        try:
            os.makedirs(full.parent, exist_ok=True)
            with atomic_write(full) as file:
                file.write(data)
        except OSError as error:
            raise TransferError(f"{full} could not be written: {error.strerror or error}") from error


class Remote:
    """A place that fsspec reaches. An object store replaces an object in one step; others may not."""

    def __init__(self, filesystem: Any, root: str, name: str) -> None:
        self._filesystem, self._root, self._name = filesystem, root.rstrip("/"), name.rstrip("/")

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None where there is none."""
        try:
            # A listing that was cached would hide what another host has published since.
            self._filesystem.invalidate_cache()
            data: bytes = self._filesystem.cat_file(f"{self._root}/{path}", end=VECTOR_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except Exception as error:  # each filesystem has exceptions of its own
            raise TransferError(f"{self._name}/{path} cannot be read: {error}") from error
        return data

    def write(self, path: str, data: bytes) -> None:
        """Make a file, or replace it."""
        full = f"{self._root}/{path}"
        try:
            self._filesystem.makedirs(full.rpartition("/")[0], exist_ok=True)
            self._filesystem.pipe_file(full, data)
        except Exception as error:  # each filesystem has exceptions of its own
            raise TransferError(f"{self._name}/{path} could not be written: {error}") from error
