"""`vector verify`, and `inspect` of what it verifies."""

from __future__ import annotations

from pathlib import Path

from invocation import Cli


class TestVerify:
    def test_what_is_accepted(self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path) -> None:
        signed = tmp_path / "v.bin"
        cli("vector", "pack", trained, small, "-o", signed, "--sign", key).done()
        verify = ("vector", "verify", signed, small, "--key", f"{key}.pub", "--require", "signature")
        record = cli(*verify, "--json").record()
        assert (record["accepted"], record["tag"], record["sequence"]) == (True, "Ed25519", 3)
        assert record["key"] in cli(*verify).done()
        cli("keygen", tmp_path / "new").done()
        cli(*verify, "--key", tmp_path / "new.pub").done()
        cli("vector", "verify", signed, small, "--key", tmp_path / "new.pub").refused(
            "does not verify", "1 trusted keys (ed25519:"
        )

    def test_a_device_in_a_shell(self, cli: Cli, small: Path, trained: Path, tmp_path: Path) -> None:
        older, state = tmp_path / "older.bin", tmp_path / "state"
        cli("vector", "pack", trained, small, "-o", older, "--sequence", 2).done()
        verify = ("vector", "verify", "--state", state)
        cli(*verify, trained, small).done()
        cli(*verify, older, small).done()  # nothing was recorded yet
        cli(*verify, trained, small, "--record").done()
        cli(*verify, older, small).refused("sequence 2, but 3 was already accepted")
        cli(*verify, older, small, "--stream", "bob").refused("another stream than 'bob'")
        cli("vector", "pack", older, small, "-o", tmp_path / "bob.bin", "--stream", "bob").done()
        cli(*verify, tmp_path / "bob.bin", small, "--stream", "bob").done()
        cli(*verify, tmp_path / "bob.bin", small).refused("a stream with a name")

    def test_what_is_refused(self, cli: Cli, small: Path, trained: Path, tmp_path: Path) -> None:
        verify = ("vector", "verify", trained, small)
        cli(*verify, "--require", "signature").refused("needs a key")
        cli(*verify, "--mac", "ab" * 32, "--require", "mac").refused("requires a mac", "CRC-32")
        cli(*verify, "--max-norm", 0.1).refused("norm is 0.3")
        cli(*verify, "--record").misused("--state")
        raw = cli("vector", "new", small, "-o", "-", "--zeros", "--raw").stdout_bytes
        cli("vector", "verify", "-", small, stdin=raw).refused("requires a checksum")
        result = cli("vector", "verify", "-", small, "--require", "none", stdin=raw)
        assert "accepted: a raw payload, without a tag" in result.stdout
        trained.write_bytes(trained.read_bytes()[:-1] + b"?")
        cli(*verify).refused("checksum")


class TestInspect:
    def test_tags_are_checked_under_the_keys_given(
        self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path
    ) -> None:
        signed = tmp_path / "v.bin"
        cli("vector", "pack", trained, small, "-o", signed, "--sign", key).done()
        cli("vector", "inspect", signed).done()
        cli("vector", "inspect", signed, small).refused("no Ed25519 key")
        for command in (("vector", "inspect", signed, small), ("inspect", signed, "--basis", small)):
            assert cli(*command, "--key", f"{key}.pub", "--json").record()["verified"]
