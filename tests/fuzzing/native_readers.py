"""Harnesses of native/tinylora.c, under sanitizers: what the package takes it takes, as the same."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from functools import cache

import compiled
import gguf_readers
import numpy as np
import wire_readers
from harness import Harness, folder

from tinylora_edge import FrameError, NonFiniteError, Policy, TinyLoraError
from tinylora_edge.basis import Basis
from tinylora_edge.formats.side_tensors import load_bases, save_bases
from tinylora_edge.wire import text


@cache
def _reader(*arguments: str) -> subprocess.Popen[str]:
    """Start the reader, which answers a line on stdin with lines on stdout. A violation ends it."""
    program = folder() / "reader"
    if not program.exists():
        flags = compiled.SANITIZERS if compiled.can_sanitize(folder()) else ()
        compiled.build(program, compiled.NATIVE.parent / "tests/native/reader.c", flags=flags)
    pipe = subprocess.PIPE
    return subprocess.Popen([str(program), *arguments], stdin=pipe, stdout=pipe, text=True)


def _ask(reader: subprocess.Popen[str], line: str, *, more: int = 0) -> list[str]:
    """Return the answer: `more` lines where it begins with `ok`, as many as it says where with `modules`."""
    assert reader.stdin is not None
    assert reader.stdout is not None
    print(line, file=reader.stdin, flush=True)
    answer = [reader.stdout.readline().rstrip("\n")]
    assert answer[0] or more < 0, f"the reader ended: {reader.poll()}"
    if answer[0].startswith("modules "):
        more = 1 + int(answer[0].split()[-1])
    elif not answer[0].startswith("ok "):
        more = 0
    return answer + [reader.stdout.readline().rstrip("\n") for _ in range(more)]


def _read_basis(data: bytes) -> None:
    path = folder() / "native.gguf"
    path.write_bytes(data)
    _, *said = _ask(_reader("each"), str(path))
    try:
        bases = load_bases(path)
    except TinyLoraError:
        if not said:
            raise
        return  # for its prior, say, which the reader in C does not read
    if not said:  # a rank of 64 bits, say, which the page does not allow
        save_bases(bases, path)
        _, *said = _ask(_reader("each"), str(path))
    expected = [f"factors {bases.factors.digest}"]
    for basis in bases.values():
        expected.append(f"{basis.digest} {basis.size} {basis.projection.descriptor}{_hash(basis)}")
    assert [*dict.fromkeys(said)] == expected, (said, expected)  # a default projection may be listed, too


def _hash(basis: Basis) -> str:
    if basis.size * len(basis.modules) > 1 << 16:
        return ""
    try:
        r = basis.R(np.full(basis.size, 0.5, np.float32)).astype("<f4").tobytes()
    except NonFiniteError:
        r = b""
    return f" {hashlib.sha256(r).hexdigest()[:8]}"


@cache
def _frames() -> subprocess.Popen[str]:
    save_bases(wire_readers.BASES, folder() / "frames.gguf")
    return _reader("apply", str(folder() / "frames.gguf"), "", "0")


def _read_frame(data: bytes) -> None:
    if not data:
        raise FrameError
    said, *r = _ask(_frames(), data.hex(), more=1)
    try:
        vector = _policy.check(data, wire_readers.BASES)
    except TinyLoraError:
        assert said.startswith("refused "), said
        raise
    assert said.endswith(f" values {vector.values.astype('<f4').tobytes().hex()}")
    basis = wire_readers.BASES.of_frame(data)
    assert r == [f"{basis.R(vector).astype('<f4').tobytes().hex()} {basis.projection.descriptor}"]


_policy = Policy("checksum", today=None)


def _read_text(data: bytes) -> None:
    if not data or b"\0" in data or not data.isascii():
        raise FrameError
    (said,) = _ask(_reader("texts"), data.hex(), more=-1)
    try:
        found = text.decode(data.decode())
    except TinyLoraError:
        assert said.startswith("refused "), said
        raise
    assert said == found.hex()


HARNESSES = [
    Harness("native_basis", gguf_readers._make_basis, _read_basis, gguf_readers._mend_basis),
    Harness("native_frame", wire_readers._make_frame, _read_frame, wire_readers._mend_frame),
    Harness("native_text", wire_readers._make_text, _read_text),
] * bool(shutil.which("cc"))
