"""`vector pack`: what it frames, under which keys, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from invocation import Cli

from tinylora_edge import Basis, Ed25519Verifier, Hmac, MicroVector, Policy


class TestPack:
    def test_signed(self, cli: Cli, small: Path, small_basis: Basis, trained: Path, key: Path) -> None:
        out = trained.with_name("v.bin")
        shown = cli(
            "pack", trained, small, "-o", out, "--key", key, "--dtype", "bf16", "--sequence", 9
        ).done()
        verifier = Ed25519Verifier.from_pem(key.with_name("fleet.key.pub").read_bytes())
        vector = Policy("signature", keys=[verifier]).check(out.read_bytes(), small_basis)
        plain = Policy().check(trained.read_bytes(), small_basis)
        assert (vector.dtype, vector.sequence, len(out.read_bytes())) == ("bf16", 9, 97)
        assert vector == MicroVector(plain.values, "bf16", 9)
        assert verifier.id in shown

    def test_with_a_mac_from_a_file_and_in_digits(
        self, cli: Cli, small: Path, small_basis: Basis, trained: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "d.mac").write_text("ab" * 32 + "\n")
        (tmp_path / "d.mac").chmod(0o600)
        outs = []
        for mac in (tmp_path / "d.mac", "AB" * 32):
            cli("pack", trained, small, "-o", tmp_path / "v", "--mac", mac, "--force").done()
            outs.append((tmp_path / "v").read_bytes())
        assert outs[0] == outs[1]
        assert len(outs[0]) == 67
        Policy("mac", keys=[Hmac(b"\xab" * 32)]).check(outs[0], small_basis)

    def test_as_it_came(self, cli: Cli, small: Path, trained: Path) -> None:
        result = cli("pack", trained, small, "-o", "-")
        assert result.stdout_bytes == trained.read_bytes()

    def test_scaled(self, cli: Cli, small: Path, small_basis: Basis, trained: Path) -> None:
        out = trained.with_name("gentle.bin")
        record = cli("pack", trained, small, "-o", out, "--scale", 0.6, "--json").record()
        plain = Policy().check(trained.read_bytes(), small_basis)
        vector = Policy().check(out.read_bytes(), small_basis)
        assert vector == MicroVector(plain.values * np.float32(0.6), plain.dtype, plain.sequence)
        assert record["norm"] == pytest.approx(0.6 * plain.norm, rel=1e-5)

    def test_a_raw_payload(self, cli: Cli, small: Path, tmp_path: Path) -> None:
        raw = cli("vector", "new", small, "-o", "-", "--random", 1, "--raw").stdout_bytes
        record = cli("pack", "-", small, "-o", tmp_path / "v", "--json", stdin=raw)
        assert "raw payload has no checksum" in record.stderr
        assert (tmp_path / "v").read_bytes()[7:-4] == raw

    def test_again_under_the_same_key_alone(
        self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        cli("pack", trained, small, "-o", first, "--key", key).done()
        record = cli("pack", first, small, "-o", second, "--key", key, "--sequence", 9, "--json").record()
        assert (record["sequence"], record["exact"]) == (9, True)
        cli("keygen", tmp_path / "other").done()
        cli("pack", first, small, "-o", tmp_path / "3", "--key", tmp_path / "other").refused(
            "does not verify under any"
        )
        cli("pack", first, small, "-o", tmp_path / "3").refused("no Ed25519 key to check it")
        assert not (tmp_path / "3").exists()

    def test_the_wrong_half_of_a_pair(self, cli: Cli, small: Path, trained: Path, key: Path) -> None:
        out = trained.with_name("v.bin")
        cli("pack", trained, small, "-o", out, "--key", f"{key}.pub").refused(
            "fleet.key.pub: ", "this verifies"
        )
        cli("inspect", trained, small, "--key", key).refused("fleet.key: ", "this signs")
        assert not out.exists()

    def test_a_key_that_others_can_read_is_named(
        self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path
    ) -> None:
        key.chmod(0o644)
        result = cli("pack", trained, small, "-o", tmp_path / "v", "--key", key)
        assert result.code == 0
        assert result.stderr == f"warning: {key} can be read by others on this machine: chmod 600 {key}\n"

    @pytest.mark.parametrize("digits", [256, 1024])
    def test_a_mac_key_longer_than_a_name(
        self, cli: Cli, small: Path, trained: Path, tmp_path: Path, digits: int
    ) -> None:
        """No system call that fails for its length says it to everybody."""
        pack = ("pack", trained, small, "-o", tmp_path / "v")
        cli(*pack, "--mac", secret := "5a" * (digits // 2)).done()
        cli("inspect", tmp_path / "v", small, "--mac", secret).done()
        refused = cli(*pack, "--force", "--mac", secret[1:])
        refused.refused("even number of hexadecimal digits")
        assert "5a5a5a" not in refused.stderr

    def test_wrong_usage(self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path) -> None:
        pack = ("pack", trained, small, "-o", tmp_path / "v")
        cli(*pack, "--key", key, "--mac", "ab" * 32).misused("one tag")
        cli(*pack, "--sequence", 65536).misused("--sequence")
        for scale in ("0", "-1", "nan", "inf"):
            cli(*pack, "--scale", scale).misused("--scale", "above 0")
        cli(*pack, "--mac", "ab" * 8).refused("8 bytes", "at least 16")
        cli(*pack, "--mac", "no-such-file").refused("no-such-file is no file that can be found")
        cli(*pack, "--key", tmp_path / "none").refused("No such file")
        cli(*pack[:-1], "-", "--json").misused("--json")
