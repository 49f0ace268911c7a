"""The keys that a device trusts: those that it was given, and those that a keyring file lists.

A keyring is JSON. `key` is the line between the first and the last of a public key's PEM file:

    {"keys": [{"key": "MCowBQYDK2VwAyEA...", "streams": ["alice", "eu-*"],
               "first": "2026-01-01", "last": "2026-12-31"}]}

`streams`, `first` and `last` may be left out: then the key signs for every stream, on every day. A `*` at the
end of a stream stands for any rest, and `default` for the stream without a name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from os import PathLike
from typing import Any

from .documents import read_json
from .errors import SignatureError, TrustError
from .wire import expiry, frame, tags

_FIELDS = {"key": str, "streams": list, "first": str, "last": str}


@dataclass(frozen=True)
class ListedKey:
    """A public key of a keyring: the streams that it signs for (None for all), its first and last day."""

    verifier: tags.Ed25519Verifier
    streams: tuple[str, ...] | None = None
    first: date = date.min
    last: date = date.max

    @classmethod
    def read(cls, value: Any) -> ListedKey:
        """Return the key that an object of a keyring names; ValueError where it names none."""
        if not isinstance(value, dict) or "key" not in value:
            raise ValueError(f"a key is an object with a field `key`, not {value!r:.60}")
        for name, found in value.items():
            if name not in _FIELDS or not isinstance(found, _FIELDS[name]):
                raise ValueError(f"a key has {', '.join(_FIELDS)}, and {name!s:.40} is {found!r:.60}")
        streams = value.get("streams")
        if streams is not None and not all(isinstance(name, str) and name for name in streams):
            raise ValueError(f"streams are names, not {streams!r:.60}")
        days = {name: date.fromisoformat(value[name]) for name in ("first", "last") if name in value}
        pem = f"-----BEGIN PUBLIC KEY-----\n{value['key']}\n-----END PUBLIC KEY-----"
        return cls(tags.Ed25519Verifier.from_pem(pem), None if streams is None else tuple(streams), **days)

    def why_not(self, stream: str, today: date) -> str:
        """Return why it does not sign for a stream today; empty where it does."""
        name = stream or "default"
        if self.streams is not None and not any(
            name.startswith(known[:-1]) if known.endswith("*") else name == known for known in self.streams
        ):
            return f"signs for {', '.join(self.streams)[:60] or 'no stream'}, and not for {name!r}"
        if today < self.first:
            return f"counts from {self.first} on, and today is {today}"
        return f"counted until {self.last}, and today is {today}" if today > self.last else ""


class Keyring:
    """The keys of a policy: those that were given, and those of a file, read again where it changes.

    Raises:
        VectorError: something else than verifiers is among the keys.
        TrustError: the file is no keyring.
        OSError: it cannot be read.
    """

    def __init__(
        self, keys: Sequence[tags.Verifier], path: str | PathLike[str] | None, clock: expiry.Clock
    ) -> None:
        tags.check_verifiers(keys)
        self._keys, self.path, self._clock = tuple(keys), path, clock
        self._read: tuple[tuple[int, ...], tuple[ListedKey, ...]] = (), ()
        self._listed()

    def __repr__(self) -> str:
        keys = f"keys=[{', '.join(map(tags.key_id, self._keys))}]"
        return keys if self.path is None else f"{keys}, keyring={os.fspath(self.path)!r}"

    @property
    def kinds(self) -> list[int]:
        """The kinds of tags that may be checked."""
        return [*(key.kind for key in self._keys), *(() if self.path is None else (tags.ED25519,))]

    def verified_by(self, received: frame.Frame, digest: bytes, stream: str) -> str:
        """Return the id of the key under which a frame's tag verifies; empty for a checksum or no tag.

        Raises:
            ChecksumError: the checksum is another one.
            SignatureError: no trusted key made the tag; where a listed one did that does not count, why not.
            VectorError: the device's clock says a day that cannot be today's.
            OSError, TrustError: the keyring was changed to what cannot be read.
        """
        refused: list[tuple[ListedKey, str]] = []
        trusted = list(self._keys)
        if received.kind == tags.ED25519 and (listed := self._listed()):
            today = expiry.day_date(self._clock.today())
            for key in listed:
                why = key.why_not(stream, today)
                trusted += [] if why else [key.verifier]
                refused += [(key, why)] if why else []
        try:
            return frame.check_tag(received, stream, digest, trusted)
        except SignatureError:
            message = frame.message(stream, digest, received.body)
            for key, why in refused:
                if key.verifier.verify(message, received.tag):
                    raise SignatureError(f"the frame is by {key.verifier.id}, which {why}") from None
            raise

    def _listed(self) -> tuple[ListedKey, ...]:
        """Return the keys of the file as it is now."""
        if self.path is None:
            return ()
        found = os.stat(self.path)
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen != self._read[0]:
            try:
                document = read_json(self.path)
                if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
                    raise ValueError('it is no {"keys": [...]}')
                self._read = seen, tuple(map(ListedKey.read, document["keys"]))
            except ValueError as error:
                raise TrustError(f"{os.fspath(self.path)} is no keyring: {error}") from None
        return self._read[1]
