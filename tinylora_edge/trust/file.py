"""The trust file of a device: read again where it changed, and replaced only by what may follow it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any

from ..errors import SignatureError, TrustError
from ..limits import TRUST_BYTES
from ..system import atomic_write, check_path, locked
from ..wire import expiry
from ..wire.tags import Ed25519Verifier
from .chain import Trust
from .records import Check


class TrustFile:
    """A trust file on this device, for one process or several.

    The rules, beside those of `Trust`:

    1. The file that is there when this is made is believed: it came with the device, as a public key does.
       Whoever can write it can replace it, so keep it where the state is.
    2. It is read again where it changed. What this process saw never falls, whatever the file says later.
    3. `accept` replaces it, whole and durably, by what may follow it, and by nothing else.

    Args:
        path: the file. `<path>.lock` beside it is the lock of `accept`.
        today: returns the day, or None where the device has no clock (see `Trust.today`); by default the
            day of the system's clock, in UTC.
        check: the device's own Ed25519; by default the `cryptography` package.

    Raises:
        OSError: the file cannot be read.
        TrustError: it is no trust file, or does not verify.
        MissingExtraError: there is no `check`, and `cryptography` is not installed.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        today: Callable[[], date | None] | None = None,
        check: Check | None = None,
    ) -> None:
        check_path(path, TrustError)
        self._path, self._today, self._check = Path(os.path.realpath(path)), today, check
        self._lock = RLock()
        self._trust: Trust | None = None
        self._seen: tuple[int, ...] | None = None
        self._refresh()

    def __repr__(self) -> str:
        return f"TrustFile({str(self._path)!r}, {self._trust!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (str(self._path), self._today, self._check)

    @property
    def trust(self) -> Trust:
        """What is believed now.

        Raises:
            OSError, TrustError: the file was changed to what cannot be read, or may not follow.
        """
        with self._lock:
            self._refresh()
            assert self._trust is not None
            return self._trust

    def accept(self, data: bytes) -> bool:
        """Replace the file by a newer one, durably; return whether there was anything new in it.

        Args:
            data: that came from anywhere.

        Raises:
            TrustError: it may not follow what is believed. The file stays as it was.
            OSError: the file cannot be read or written; it stays as it was.
        """
        self.trust.updated(data)  # a refusal leaves no lock behind
        with self._lock, locked(self._path):
            self._seen = None
            self._refresh()
            assert self._trust is not None
            new = self._trust.updated(data)
            if new.envelope.payload == self._trust.envelope.payload:
                return False
            with atomic_write(self._path, mode=0o644) as file:
                file.write(data)
            self._refresh()
            return True

    def verifiers(self, stream: str, day: date | None = None) -> list[Ed25519Verifier]:
        """Return what checks signatures of the keys that may sign vectors of a stream today.

        Args:
            stream: name of the stream.
            day: today by the caller's clock, which counts where the file was made without one of its own.

        Raises:
            SignatureError: the list of keys is past its day.
            OSError, TrustError: as for `trust`.
        """
        trust = self.trust
        try:
            return trust.accepted(stream, self._day(day))
        except TrustError as error:
            raise SignatureError(f"no vector is accepted: {error}") from None

    def bundle_keys(
        self, day: date | None = None
    ) -> tuple[list[Ed25519Verifier], list[tuple[Ed25519Verifier, str]]]:
        """Return what `Trust.bundle_keys` does, for today.

        Args:
            day: as for `verifiers`.

        Raises:
            OSError, TrustError: as for `trust`, or the list of keys is past its day.
        """
        return self.trust.bundle_keys(self._day(day))

    def explain(self, stream: str, message: bytes, tag: bytes, day: date | None = None) -> None:
        """Say why a signature that no trusted key made does not count, where a listed one made it.

        Raises:
            SignatureError: it is of a key that is revoked, of other streams, or of other days.
        """
        for key, why in self.trust.refused(stream, self._day(day)):
            if key.verify(message, tag):
                raise SignatureError(f"the frame was signed by {key.id}, which does not count: {why}")

    def _day(self, day: date | None) -> date | None:
        if self._today is not None:
            return self._today()
        return expiry.utc_today() if day is None else day

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            if self._trust is None:
                raise FileNotFoundError(
                    f"{self._path} does not exist: put the trust file there that its owners made with "
                    "tinylora-edge trust init"
                ) from None
            return  # what was seen stays known
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return
        with open(self._path, "rb") as file:
            read = os.fstat(file.fileno())
            data = file.read(TRUST_BYTES + 1)
        try:
            self._trust = Trust.read(data, self._check) if self._trust is None else self._trust.updated(data)
        except TrustError as error:
            raise TrustError(f"the trust file {self._path} is refused: {error}") from None
        self._seen = (read.st_ino, read.st_size, read.st_mtime_ns)


def opened(trust: TrustFile | str | PathLike[str] | None) -> TrustFile | None:
    """Return the trust file that an argument names, or is. Errors: those of `TrustFile`."""
    return trust if trust is None or isinstance(trust, TrustFile) else TrustFile(trust)


def _remade(path: str, today: Callable[[], date | None] | None, check: Check | None) -> TrustFile:
    return TrustFile(path, today=today, check=check)
