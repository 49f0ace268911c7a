"""Harnesses of native/tinylora.c, under sanitizers: what the package takes it takes, as the same."""

from __future__ import annotations

import hashlib
from datetime import date
from functools import cache

import gguf_readers
import native_reader
import numpy as np
import wire_readers
from harness import Harness, folder

from tinylora_edge import FrameError, Hmac, NonFiniteError, Policy, TinyLoraError
from tinylora_edge.basis import Basis
from tinylora_edge.formats.side_tensors import load_bases, save_bases
from tinylora_edge.wire import text


@cache
def _reader(*arguments: str) -> native_reader.Conversation:
    return native_reader.Conversation(native_reader.watched(), *arguments)


def _read_basis(data: bytes) -> None:
    path = folder() / "native.gguf"
    path.write_bytes(data)
    _, *lines = _reader("each").ask(str(path))
    try:
        bases = load_bases(path)
    except TinyLoraError as error:
        if lines and "prior" in str(error):  # which the reader in C does not read
            return
        if lines:
            raise AssertionError(lines) from error
        raise
    if not lines:  # a rank of 64 bits, say, which the page does not allow
        save_bases(bases, path)
        _, *lines = _reader("each").ask(str(path))
    expected = [f"factors {bases.factors.digest}"]
    for basis in bases.values():
        expected.append(f"{basis.digest} {basis.size} {basis.projection.descriptor}{_hash(basis)}")
    assert [*dict.fromkeys(lines)] == expected, (lines, expected)  # a default projection may be listed, too


def _hash(basis: Basis) -> str:
    if basis.size * len(basis.modules) > 1 << 16:
        return ""
    try:
        r = basis.R(np.full(basis.size, 0.5, np.float32)).astype("<f4").tobytes()
    except NonFiniteError:
        r = b""
    return f" {hashlib.sha256(r).hexdigest()[:8]}"


@cache
def _policies() -> list[tuple[native_reader.Conversation, Policy]]:
    save_bases(wire_readers.BASES, folder() / "frames.gguf")
    arguments = "apply", str(folder() / "frames.gguf"), "", "1"
    key = _reader(*arguments, f"hmac:{wire_readers.SECRET.hex()}")
    return [
        (_reader(*arguments), Policy(today=date(2026, 1, 2), max_norm=1000)),
        (key, Policy(keys=[Hmac(wire_readers.SECRET)], today=date(2026, 1, 2), max_norm=1000)),
    ]


def _read_frame(data: bytes) -> None:
    both = _policies()
    if not data:
        raise FrameError
    errors = [native_reader.agree(reader, policy, data, wire_readers.BASES) for reader, policy in both]
    if all(errors) and errors[0] is not None:
        raise errors[0]


def _read_text(data: bytes) -> None:
    reader = _reader("texts")
    if not data or b"\0" in data or not data.isascii():
        raise FrameError
    (line,) = reader.ask(data.hex())
    try:
        found = text.decode(data.decode())
    except TinyLoraError:
        assert line.startswith("refused "), line
        raise
    assert line == found.hex()


HARNESSES = [
    Harness("native_basis", gguf_readers._make_basis, _read_basis, gguf_readers._mend_basis),
    Harness("native_frame", wire_readers._make_frame, _read_frame, wire_readers._mend_frame),
    Harness("native_text", wire_readers._make_text, _read_text),
] * bool(native_reader.compilers())
