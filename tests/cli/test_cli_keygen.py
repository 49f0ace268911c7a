"""`keygen`: what it writes, and for whom."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from invocation import Cli, contents

from tinylora_edge import Ed25519Signer


def test_a_pair(cli: Cli, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        record = cli("keygen", tmp_path / "a.key", "--json").record()
    finally:
        os.umask(before)
    private, public = tmp_path / "a.key", tmp_path / "a.key.pub"
    assert [stat.S_IMODE(p.stat().st_mode) for p in (private, public)] == [0o600, 0o644]
    secret = load_pem_private_key(private.read_bytes(), None)
    assert secret.public_key() == load_pem_public_key(public.read_bytes())
    assert record["id"] == Ed25519Signer.from_pem(private.read_bytes()).id


def test_a_mac(cli: Cli, tmp_path: Path) -> None:
    printed = cli("keygen", tmp_path / "d.mac", "--mac").done()
    text = (tmp_path / "d.mac").read_text()
    assert len(bytes.fromhex(text)) == 32
    assert text.strip() not in printed
    assert stat.S_IMODE((tmp_path / "d.mac").stat().st_mode) == 0o600
    assert set(contents(tmp_path)) == {"d.mac"}


@pytest.mark.parametrize("there", ["a.key", "a.key.pub"])
def test_a_key_is_never_lost_by_accident(cli: Cli, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    cli("keygen", tmp_path / "a.key").refused(there, "exists already")
    assert contents(tmp_path) == {there: b"precious"}
    cli("keygen", tmp_path / "no" / "a.key").refused(str(tmp_path / "no"))
    cli("keygen", tmp_path).refused("exists already")
