"""Everything bad that a user can hand to the command line: one line, code 1, and nothing changed."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from invocation import Cli

from tinylora_edge import Basis, MicroVector


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


@pytest.mark.parametrize("name", ["empty", "flipped in a value", "far oversized", "NaN"])
def test_a_bad_vector(cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path, name: str) -> None:
    """tests/core has the others."""
    good = MicroVector.random(basis, 0.2, seed=9, dtype="bf16").to_bytes(basis)
    nan = support.frame(basis.digest, struct.pack("<13f", *[0.1] * 5, float("nan"), *[0.1] * 7))
    data, parts = {
        "empty": (b"", ["0 bytes are no frame"]),
        "flipped in a value": (flipped(good, 12, 3), ["checksum", "its bytes give"]),
        "far oversized": (bytes((1 << 21) + 1), ["2,097,152"]),
        "NaN": (nan, ["value 5", "nan"]),
    }[name]
    path = tmp_path / "v.bin"
    path.write_bytes(data)
    cli("inspect", "-", smollm2_bundle, "--json", stdin=data).refused(*parts)
    cli("pack", path, smollm2_bundle / "basis.gguf").refused(*parts)
    if name == "NaN":
        cli("run", smollm2_bundle, "Hello", "--vector", path).refused(*parts)
        chat = ("chat", smollm2_bundle, "--threads", 1)
        cli(*chat, "--vector", path, stdin=b"Hello\n").refused(*parts)
        cli(*chat, stdin=f"/vector {path}\nHello\n".encode()).refused(*parts)


def test_a_missing_vector_or_bundle(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    cli("run", smollm2_bundle, "Hello", "--vector", missing).refused(str(missing), "No such file")
    for command in ("pack", "inspect"):
        cli(command, missing).refused(str(missing), "No such file")
    cli("pack", tmp_path).refused(str(tmp_path), "Is a directory")
    for words in (("run", missing, "Hello"), ("chat", missing), ("run", tmp_path, "Hello")):
        cli(*words).refused("does not exist")
    cli("pack", "-", missing, stdin=b"").refused("does not exist")


@pytest.fixture
def bundle(smollm2_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose basis may be damaged; its base is a hard link and must not be."""
    path = tmp_path / "bundle"
    path.mkdir()
    os.link(smollm2_bundle / "base.gguf", path / "base.gguf")
    shutil.copy(smollm2_bundle / "basis.gguf", path / "basis.gguf")
    return path


def every_use(cli: Cli, bundle: Path, *parts: str) -> None:
    for words in (("inspect", bundle, "--json"), ("run", bundle, "Hello")):
        cli(*words).refused(*parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda d: d[:-4096], ["basis.gguf", "4961984 bytes"]),
        (lambda d: b"", ["empty"]),
        (lambda d: flipped(d, len(d) // 2, 2), ["states factors", "its content gives"]),
    ],
    ids=["cut", "empty", "factor"],
)
def test_a_corrupt_basis(cli: Cli, bundle: Path, change: Callable[[bytes], bytes], parts: list[str]) -> None:
    (bundle / "basis.gguf").write_bytes(change((bundle / "basis.gguf").read_bytes()))
    every_use(cli, bundle, "basis.gguf", *parts)
    out = bundle.parent / "v.bin"
    for path in (bundle, bundle / "basis.gguf"):
        cli("pack", "-", path, "-o", out, stdin=bytes(52)).refused("basis.gguf", *parts)
    cli("inspect", "-", bundle, stdin=bytes(52)).refused("basis.gguf", *parts)
    cli("inspect", bundle / "basis.gguf").refused("basis.gguf", *parts)
    assert not out.exists()


def test_a_basis_for_another_base(cli: Cli, bundle: Path, basis: Basis, tiny_gguf: Path) -> None:
    (bundle / "base.gguf").unlink()
    shutil.copy(tiny_gguf, bundle / "base.gguf")
    every_use(cli, bundle, "blk.0.attn_q.weight has shape (576, 576)", "(64, 64)", "another model")


@pytest.mark.parametrize("part", ["base.gguf", "basis.gguf"])
def test_a_bundle_without_a_part(cli: Cli, bundle: Path, part: str) -> None:
    (bundle / part).unlink()
    every_use(cli, bundle, f"{part} does not exist", "tinylora-edge export")
