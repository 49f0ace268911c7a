"""Everything bad that a user can hand to the command line: one line, code 1, and nothing changed."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
import support
from invocation import Cli

from tinylora_edge import Basis


def test_a_bad_vector(cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path) -> None:
    """By whatever reads one. tests/core has what else is bad."""
    data = support.frame(basis.digest, struct.pack("<13f", *[0.1] * 5, float("nan"), *[0.1] * 7))
    path, parts = tmp_path / "v.bin", ("value 5", "nan")
    path.write_bytes(data)
    cli("inspect", "-", smollm2_bundle, "--json", stdin=data).refused(*parts)
    cli("inspect", "-", smollm2_bundle, stdin=bytes((1 << 21) + 1)).refused("2,097,152")
    cli("pack", path, smollm2_bundle / "basis.gguf").refused(*parts)
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
    os.mkfifo(tmp_path / "pipe")  # and nobody ever writes into it
    target = ("--to", "gguf-lora", "-o", tmp_path / "lora")
    cli("convert", tmp_path / "pipe", smollm2_bundle, *target).refused("it is a pipe or a device")
    cli("run", smollm2_bundle, "Hello", "--vector", tmp_path / "pipe").refused("it is a pipe or a device")
    for command in ("pack", "inspect"):
        cli(command, tmp_path / "pipe").refused("it is a pipe or a device")
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


def test_a_corrupt_basis(cli: Cli, bundle: Path) -> None:
    data = bytearray((bundle / "basis.gguf").read_bytes())
    data[len(data) // 2] ^= 4
    (bundle / "basis.gguf").write_bytes(data)
    parts = ("basis.gguf", "states factors", "its content gives")
    every_use(cli, bundle, *parts)
    out = bundle.parent / "v.bin"
    for path in (bundle, bundle / "basis.gguf"):
        cli("pack", "-", path, "-o", out, stdin=bytes(52)).refused(*parts)
    cli("inspect", "-", bundle, stdin=bytes(52)).refused(*parts)
    cli("inspect", bundle / "basis.gguf").refused(*parts)
    assert not out.exists()


def test_a_basis_for_another_base(cli: Cli, bundle: Path, tiny_gguf: Path) -> None:
    (bundle / "base.gguf").unlink()
    shutil.copy(tiny_gguf, bundle / "base.gguf")
    every_use(cli, bundle, "blk.0.attn_q.weight has shape (576, 576)", "(64, 64)", "another model")


@pytest.mark.parametrize("part", ["base.gguf", "basis.gguf"])
def test_a_bundle_without_a_part(cli: Cli, bundle: Path, part: str) -> None:
    (bundle / part).unlink()
    every_use(cli, bundle, f"{part} does not exist", "tinylora-edge export")
    os.mkfifo(bundle / part)  # and nobody ever writes into it
    every_use(cli, bundle, part, "it is a pipe or a device")
