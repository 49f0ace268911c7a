"""The page's other side: its visitor, the editor of his vector, and the files that his browser loads."""

from __future__ import annotations

import io
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ..basis import Basis
from ..errors import ChecksumError, FrameError, MissingExtraError, RequestError, VectorError
from ..vector import FIRST_SEQUENCE, MicroVector, Policy
from ..wire import text
from .store import Store, check_user

PAGE = "index.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Nothing from anywhere else, nothing inline, in nobody's frame. The QR code is an image made of a blob.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every file of the page."""

_TOKEN_BYTES = 24
_DTYPE = "bf16"  # 37 bytes for 13 values, and steps finer than those of a slider
_REACH = 1.0  # of a slider, where no prior says how large values are
_LARGEST = 1e30  # far beyond what any model bears, and within float32 and bf16
_DEVIATIONS = 3.0  # of the prior, that a slider reaches


@cache
def read_files() -> Mapping[str, tuple[bytes, str]]:
    """Return content and type of each file that a browser loads, by its name."""
    return {
        entry.name: (entry.read_bytes(), _TYPES["." + entry.name.rpartition(".")[2]])
        for entry in (files(__package__) / "page").iterdir()
    }


@dataclass(frozen=True)
class Visitor:
    """The one person whom a page is for.

    Attributes:
        user: his name, which is also that of his stream of vectors.
        vector: a frame that his page begins with; None for what the store has of him, or the base.
        token: that the page's requests carry as their API key. It stands for this user and nobody else.

    Raises:
        RequestError: the name is none of a user.
    """

    user: str = "me"
    vector: bytes | None = field(default=None, repr=False)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(_TOKEN_BYTES), repr=False)

    def __post_init__(self) -> None:
        check_user(self.user)

    def address(self, origin: str) -> str:
        """Return the page's address on a server: the token is behind the #, which no browser sends."""
        return f"{origin}/#token={self.token}"


@dataclass(frozen=True)
class Edited:
    """A vector in the visitor's hands.

    Attributes:
        vector: its values, as they were set, learned or read.
        frame: its bytes, of the visitor's stream; there they are rounded.
    """

    vector: MicroVector
    frame: bytes

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "object": "page.vector",
            "values": [float(value) for value in self.vector.values.reshape(-1)],
            "norm": self.vector.norm,
            "sequence": self.vector.sequence,
            "vector": text.encode(self.frame),
            "bytes": len(self.frame),
        }


class VectorEditor:
    """What a visitor does with his vector: he moves its values, opens a frame, and finds what clicks made.

    A frame that he opens by hand may be older than what clicks have taught since: it is checked like any
    other, but for its sequence, and framed anew.

    Args:
        basis: of the vectors.
        policy: of the server. It has to take frames with a checksum.
        visitor: whose vector it is.
        store: with what clicks made of it; None where nothing is kept.

    Raises:
        VectorError: the policy would refuse every frame that is made here, or the visitor's first vector.
    """

    def __init__(self, basis: Basis, policy: Policy, visitor: Visitor, store: Store | None) -> None:
        self.user, self._basis, self._policy, self._store = visitor.user, basis, policy, store
        try:
            policy.check(MicroVector.zeros(basis).to_bytes(basis), basis)
        except VectorError as error:
            raise VectorError(
                "a page makes vectors of what its sliders say, which nobody has signed, and this server "
                f"would refuse them all: leave out its keys and what it requires ({error})"
            ) from None
        self._first, self._before = MicroVector.zeros(basis), 0
        if visitor.vector is not None:  # it comes before what was stored until now
            self._first = self.opened(visitor.vector).vector
            self._before = self._sequence()

    def present(self) -> Edited:
        """Return what clicks made of the vector, or the one that the page begins with, or the base: zeros.

        Raises:
            VectorError: what the store has is refused.
            StoreError: the store cannot be read.
        """
        return self.learned() if self._sequence() > self._before else self._framed(self._first)

    def learned(self) -> Edited:
        """Return what clicks made of the vector, in earlier sessions too; zeros where there were none.

        Errors: those of `present`.
        """
        stored = None if self._store is None else self._store.get(self.user)
        return self._framed(MicroVector.zeros(self._basis) if stored is None else self._read(stored.frame))

    def made(self, values: Sequence[Any]) -> Edited:
        """Return a vector of these values.

        Raises:
            RequestError: they are no numbers, or absurd ones.
            VectorError: they are too many or too few, or their norm is larger than the policy takes.
        """
        if not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values):
            raise RequestError(f"values are numbers from -{_LARGEST:g} to {_LARGEST:g}", param="values")
        return self._framed(MicroVector(self._basis.values(values)))

    def opened(self, data: bytes) -> Edited:
        """Return the vector in the bytes of a file: a frame, a raw payload, or the text of one.

        Raises:
            VectorError: the policy refuses it; the subclass says why.
        """
        return self._framed(self._read(text.decode(data) if text.is_text(data) else data))

    def reach(self) -> float:
        """Return how far from 0 a slider goes: as far as vectors that people want do, where a prior says."""
        prior = self._basis.prior
        if prior is None:
            return _REACH
        spread = abs(prior.mean) + _DEVIATIONS * prior.covariance.diagonal() ** 0.5
        return math.ceil(float(spread.max()) * 10) / 10

    def _read(self, data: bytes) -> MicroVector:
        """Return a vector of the visitor's stream, or of the one without a name, as files mostly are."""
        rules = Policy(max_norm=self._policy.max_norm)  # which remembers no sequence
        try:
            return rules.check(data, self._basis, stream=self.user)
        except ChecksumError:
            return rules.check(data, self._basis)

    def _framed(self, vector: MicroVector) -> Edited:
        accepted = self._policy.highest(self._basis, stream=self.user)
        sequence = max(self._sequence(), accepted, FIRST_SEQUENCE)
        frame = MicroVector(vector.values, _DTYPE, sequence).to_bytes(self._basis, stream=self.user)
        self._policy.check(frame, self._basis, stream=self.user)
        return Edited(MicroVector(vector.values, sequence=sequence), frame)

    def _sequence(self) -> int:
        """Return the highest sequence that was stored for the visitor: also of what was deleted."""
        return 0 if self._store is None else self._store.last(self.user)


def draw_qr(frame: bytes) -> bytes:
    """Return the QR code of a frame's text, `tinylora:` before it, as an SVG document: black on white.

    Raises:
        MissingExtraError: `segno` is not installed.
        FrameError: no QR code holds that much.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        code = segno.make_qr(text.encode(frame, scheme=True), error="M", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        raise FrameError(f"{len(frame)} bytes fit no QR code: save the vector as a file") from None
    out = io.BytesIO()
    code.save(out, kind="svg", scale=8, dark="#000", light="#fff", title="A vector as a QR code")
    return out.getvalue()
