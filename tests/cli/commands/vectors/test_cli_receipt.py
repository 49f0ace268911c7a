"""`vector receipt`: made by a device, checked by its host."""

from __future__ import annotations

from pathlib import Path

import pytest
import support
from invocation import Cli

from tinylora_edge import save_basis

KEY = "ab" * 32


@pytest.fixture
def ready(cli: Cli, tmp_path: Path) -> Path:
    """A folder with a basis, a key pair, and two signed frames of alice."""
    basis = tmp_path / "b.basis.gguf"
    save_basis(support.random_basis(blocks=5, groups=13), basis)
    cli("keygen", tmp_path / "key").done()
    for number in (1, 2):
        new = cli("vector", "new", basis, "-o", "-", "--random", 0.3, "--seed", number)
        pack = ("vector", "pack", "-", basis, "-o", tmp_path / f"{number}.bin", "--sign", tmp_path / "key")
        cli(*pack, "--stream", "alice", "--sequence", number, stdin=new.stdout_bytes).done()
    return tmp_path


def receipt(ready: Path, number: int, *options: object, mac: str = KEY) -> tuple[object, ...]:
    about = ("--mac", mac, "--key", f"{ready / 'key'}.pub", "--stream", "alice")
    return ("vector", "receipt", ready / f"{number}.bin", ready / "b.basis.gguf", *about, *options)


def test_there_and_back(cli: Cli, ready: Path) -> None:
    out = ready / "r.bin"
    record = cli(*receipt(ready, 1, "-o", out, "--challenge", "c0ffee", "--json")).record()
    assert (record["bytes"], record["sequence"]) == (23, 1) == (len(out.read_bytes()), 1)
    check = ("--check", out, "--challenge", "c0ffee")
    assert cli(*receipt(ready, 1, *check, "--json")).record()["holds"] is True
    assert "runs" in cli(*receipt(ready, 1, *check)).done()
    cli(*receipt(ready, 2, *check)).refused("runs another vector", "has sequence 1", "has 2")
    cli(*receipt(ready, 1, *check, mac="cd" * 32)).refused("does not verify")
    cli(*receipt(ready, 1, "--check", out)).refused("does not verify")
    (ready / "r.txt").write_text(out.read_bytes().hex())
    cli(*receipt(ready, 1, "--check", ready / "r.txt", "--challenge", "c0ffee")).done()


def test_what_it_is_refused_for(cli: Cli, ready: Path) -> None:
    cli(*receipt(ready, 1, "--challenge", "xyz")).misused("no even number")
    cli(*receipt(ready, 1, "--stream", "bob")).refused("another stream than 'bob'")
    (ready / "r.bin").write_bytes(b"?" * 23)
    cli(*receipt(ready, 1, "--check", ready / "r.bin")).refused("are no receipt")
    cli(*receipt(ready, 1, "-o", ready / "r.bin")).refused("exists already")
    cli(*receipt(ready, 1, "--json")).misused("--json")
    assert len(cli(*receipt(ready, 1)).stdout_bytes) == 23
