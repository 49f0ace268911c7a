"""The page of `play`: its files, its visitor's vector, and its routes."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from ..basis import Bases
from ..errors import ChecksumError, RequestError
from ..projection import NUMBERS
from ..vector import FIRST_SEQUENCE, MicroVector, Policy
from ..wire import text
from .access import RefusedError
from .completions import BYTES, content_type, only_field, read_bytes, read_json
from .service import Service
from .store import Store

USER = "me"  # the name of the visitor, as a user of the store
_FILES = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The page loads nothing from elsewhere, runs nothing inline, and is shown in no frame of another page.
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_TOKEN_BYTES = 24
_DTYPE = "bf16"  # 13 values take 37 bytes
_REACH = 1.0  # largest value of a slider, where no prior says how large values are
_LARGEST = 1e30  # largest value that is accepted: beyond any use, and finite in float32 and bf16
_DEVIATIONS = 3.0  # standard deviations of the prior that a slider reaches


class VectorEditor:
    """The vector of the page's visitor, who moves its values, opens frames, and clicks.

    Sliders move the values of the basis of 13 numbers; a vector of another basis has none. A frame that is
    opened may be older than what clicks taught since, so its sequence is not checked: it gets a new one, and
    keeps its last day. Methods return a vector as JSON has it. `first` is the frame that the page begins
    with, `token` the API key of its requests.

    VectorError: the policy refuses the first vector. BasisError: there is no basis of 13 numbers.
    """

    def __init__(self, bases: Bases, policy: Policy, store: Store, first: bytes | None = None) -> None:
        self._bases, self._policy, self._store = bases, policy, store
        self.basis = basis = bases.basis(numbers=NUMBERS)
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._first, self._before = MicroVector.zeros(basis), 0
        if first is not None:  # `present` prefers it to what is stored by now
            self._first, self._before = self._read(first), self._sequence()

    def present(self) -> dict[str, Any]:
        """Return the vector that clicks made; the page's first one until a click follows it; else zeros."""
        return self.learned() if self._sequence() > self._before else self._framed(self._first)

    def learned(self) -> dict[str, Any]:
        """Return the vector that clicks made, also those of earlier sessions; zeros where there were none."""
        stored = self._store.get(USER)
        return self._framed(MicroVector.zeros(self.basis) if stored is None else self._read(stored.frame))

    def made(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the vector of the sliders' values. RequestError: a frame takes no such value."""
        if not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values):
            raise RequestError(f"values are numbers from -{_LARGEST:g} to {_LARGEST:g}", param="values")
        return self._framed(MicroVector(self.basis.values(values), basis=self.basis.digest))

    def opened(self, data: bytes) -> dict[str, Any]:
        """Return the vector in the bytes of a file: a frame, or the text of one."""
        return self._framed(self._read(data))

    def reach(self) -> float:
        """Return the largest value of a slider: that of likely vectors by the prior, where there is one."""
        prior = self.basis.projection.prior
        if prior is None:
            return _REACH
        spread = abs(prior.mean) + _DEVIATIONS * prior.covariance.diagonal() ** 0.5
        return math.ceil(float(spread.max()) * 10) / 10

    def _read(self, data: bytes) -> MicroVector:
        data = text.decode(data) if text.is_text(data) else data
        rules = Policy()  # a new one, which has accepted no sequence
        try:
            return rules.check(data, self._bases, user=USER)
        except ChecksumError:
            return rules.check(data, self._bases)

    def _framed(self, vector: MicroVector) -> dict[str, Any]:
        basis = self._bases.of(vector)
        movable = basis.digest == self.basis.digest
        accepted = self._policy.highest(self._bases.factors, user=USER)
        sequence = max(self._sequence(), accepted, FIRST_SEQUENCE)
        again = replace(vector, dtype=_DTYPE if movable else vector.dtype, sequence=sequence)
        frame = again.to_bytes(basis, user=USER, until=getattr(vector, "until", None))
        self._policy.check(frame, basis, user=USER)
        values = [float(value) for value in vector.values] if movable else None
        found = {"object": "page.vector", "numbers": basis.size, "values": values, "norm": vector.norm}
        return found | {"sequence": sequence, "vector": text.encode(frame), "bytes": len(frame)}

    def _sequence(self) -> int:
        stored = self._store.get(USER)
        return 0 if stored is None else stored.sequence


async def page_file(request: Request, service: Service) -> Response:
    """Answer `GET /` and `GET /page/{file}`. They need no API key, as the files have no secret."""
    name = request.path_params.get("file", "index.html")
    if name not in os.listdir(_FILES):
        raise RefusedError(404, f"the page has no file {name[:80]!r}", "not_found")
    path = _FILES / name
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)


async def page_about(request: Request, service: Service) -> Response:
    """Answer `GET /v1/page`: what the page shows, with the visitor's vector and the one that clicks made."""
    editor = _editor(request, service)
    present, learned = await asyncio.to_thread(lambda: (editor.present(), editor.learned()))
    about: dict[str, Any] = {"object": "page", "model": service.name, "user": USER, "basis": editor.basis.id}
    about |= {"sliders": editor.basis.size, "reach": editor.reach(), "feedback": service.feedback is not None}
    about |= {"max_tokens": service.limits.tokens, "vector": present, "learned": learned}
    about |= {"under": service.under is not None}
    return JSONResponse(about)


async def page_vector(request: Request, service: Service) -> Response:
    """Answer `POST /v1/page/vector`: the body is `{"values": [...]}`, or the bytes of a vector's file."""
    editor = _editor(request, service)
    if content_type(request) == BYTES:
        return JSONResponse(await asyncio.to_thread(editor.opened, await read_bytes(request, service)))
    values = only_field(await read_json(request, service), "values")
    if not isinstance(values, list):
        raise RequestError("values must be a list", param="values")
    return JSONResponse(await asyncio.to_thread(editor.made, values))


def _editor(request: Request, service: Service) -> VectorEditor:
    if request.state.caller.user != USER:
        message = "the page is for its visitor alone: open the address that the server printed"
        raise RefusedError(403, message, "wrong_user")
    found: VectorEditor = request.app.state.editor
    return found
