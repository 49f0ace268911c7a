"""Buckets, and other places that fsspec reaches, for `publish` and `fetch`."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..errors import MissingExtraError, TransferError
from ..limits import VECTOR_FILE_BYTES

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def shown(address: str) -> str:
    """Return an address to show: without user and password, query and fragment, which may be secrets."""
    return re.sub(r"(?s)\A([A-Za-z0-9+.-]*://)?.*@|[?#].*", r"\1", address)


class Bucket:
    """A place that fsspec reaches. An object store replaces an object in one step; other places may not.

    TransferError: the address is no such place, cannot be opened, or has a password; of methods, it cannot be
    read or written. MissingExtraError: fsspec is not installed.
    """

    def __init__(self, to: str) -> None:
        self._to = shown(to).rstrip("/")
        scheme, separator, place = to.partition("://")
        if scheme in ("http", "https"):
            raise TransferError(
                f"{self._to} is where devices fetch from: publish to the directory or bucket behind it"
            )
        if not (_SCHEME.fullmatch(scheme) and separator) or "::" in to or scheme == "memory":
            raise TransferError(
                f"{self._to} is no place that others can read: name one such as s3://bucket/vectors, or a "
                "directory"
            )
        if ":" in place.rpartition("@")[0]:  # a password, which an error of fsspec would repeat
            raise TransferError(
                f"{self._to} has a password, which other users of this machine see: set FSSPEC_"
                f"{scheme.upper()}_PASSWORD instead"
            )
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError(f"a bucket, {scheme}://", "fsspec", "ship") from None
        self._filesystem: Any
        try:
            self._filesystem, root = fsspec.core.url_to_fs(to)
        except Exception as error:  # each filesystem has exceptions of its own
            raise TransferError(f"{self._to}: fsspec cannot open {scheme}://: {error}") from error
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes | None:
        """Return a file, of a long one a byte more than vectors' files may have; None where there is none."""
        try:
            self._filesystem.invalidate_cache()  # so that what another host has published is found
            data: bytes = self._filesystem.cat_file(f"{self._root}/{path}", end=VECTOR_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except Exception as error:  # each filesystem has exceptions of its own
            raise TransferError(f"{self._to}/{path} cannot be read: {error}") from error
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a file, or replace it."""
        full = f"{self._root}/{path}"
        try:
            self._filesystem.makedirs(full.rpartition("/")[0], exist_ok=True)
            self._filesystem.pipe_file(full, data)
        except Exception as error:  # each filesystem has exceptions of its own
            raise TransferError(f"{self._to}/{path} could not be written: {error}") from error

    def alone(self, path: str) -> AbstractContextManager[None]:
        """Do nothing: places that fsspec reaches have no locks."""
        return nullcontext()
