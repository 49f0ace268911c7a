"""`pack`: what it frames, under which keys and in which form, and what it refuses."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from invocation import Cli

from tinylora_edge import Basis, Ed25519Verifier, Hmac, MicroVector, Policy
from tinylora_edge.wire import frame, text
from tinylora_edge.wire.tags import Crc32


def test_signed(cli: Cli, small: Path, small_basis: Basis, trained: Path, key: Path) -> None:
    out = trained.with_name("v.bin")
    options = ("--dtype", "bf16", "--sequence", 9, "--user", "al", "--until", "2026-12-31")
    printed = cli("pack", trained, small, "-o", out, "--key", key, *options).done()
    verifier = Ed25519Verifier.from_pem(key.with_name("fleet.key.pub").read_bytes())
    policy = Policy(keys=[verifier], today=lambda: date(2026, 12, 31))
    vector = policy.check(out.read_bytes(), small_basis, user="al")
    plain = Policy().check(trained.read_bytes(), small_basis)
    assert vector == MicroVector(plain.values, "bf16", 9, small_basis.digest)
    assert len(out.read_bytes()) == 99
    facts = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert (facts["bytes"], facts["until"], facts["key"]) == ("99", "2026-12-31", verifier.id)


def test_with_a_mac(cli: Cli, small: Path, small_basis: Basis, trained: Path, tmp_path: Path) -> None:
    mac = tmp_path / "d.mac"
    mac.write_text("ab" * 32 + "\n")
    mac.chmod(0o600)
    cli("pack", trained, small, "-o", tmp_path / "v", "--key", mac).done()
    data = (tmp_path / "v").read_bytes()
    assert len(data) == 67
    Policy(keys=[Hmac(b"\xab" * 32)]).check(data, small_basis)
    assert "hmac:" in cli("inspect", tmp_path / "v", small, "--key", mac).done()


def test_as_it_came(cli: Cli, small: Path, trained: Path) -> None:
    data = trained.read_bytes()
    assert cli("pack", trained, small).stdout_bytes == data
    assert cli("pack", trained).stdout_bytes == data
    printed = cli("pack", trained, "--text").done()
    assert printed == f"{text.encode(data)}\n"
    assert cli("pack", "-", stdin=f"\ufeff{printed}".encode()).stdout_bytes == data
    out = trained.with_name("v.txt")
    record = cli("pack", trained, "--text", "-o", out, "--json").record()
    assert (out.read_text(), record["sequence"]) == (printed, 3)


def test_codes_are_signed_as_they_came(cli: Cli, small: Path, small_basis: Basis, tmp_path: Path) -> None:
    """Even ones, for which the search that makes codes of values would find halves, and twice the scale."""
    scale = np.float32(0.5).tobytes()[1:]
    codes = np.arange(small_basis.size, dtype=np.int8) * 2
    payload = scale + codes.tobytes() + bytes(small_basis.size % 2 == 0)
    trained, out = tmp_path / "t.bin", tmp_path / "v.bin"
    trained.write_bytes(frame.encode(payload, "int8", 3, small_basis.digest, Crc32()))
    (tmp_path / "d.mac").write_text("ab" * 32)
    (tmp_path / "d.mac").chmod(0o600)
    cli("pack", trained, small, "-o", out, "--key", tmp_path / "d.mac", "--sequence", 4).done()
    assert out.read_bytes()[7:-8] == payload
    assert Policy(keys=[Hmac(b"\xab" * 32)]).check(out.read_bytes(), small_basis).sequence == 4


def test_a_qr_code(cli: Cli, trained: Path, tmp_path: Path) -> None:
    zxingcpp, image = pytest.importorskip("zxingcpp"), pytest.importorskip("PIL.Image")
    cli("pack", trained, "--qr", "-o", tmp_path / "v.png").done()
    (found,) = zxingcpp.read_barcodes(image.open(tmp_path / "v.png"))
    assert bytes(found.bytes) == text.encode(trained.read_bytes(), scheme=True).encode()
    cli("pack", trained, "--qr", "-o", tmp_path / "v.svg").done()
    assert b"<svg" in (tmp_path / "v.svg").read_bytes()
    assert set(cli("pack", trained, "--qr").done()) <= set(" ▄▀█\n")
    cli("pack", trained, "--qr", "-o", tmp_path / "v.gif").refused("v.gif", ".png or .svg")


def test_again_under_the_same_key_alone(cli, small, trained, key, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    cli("pack", trained, small, "-o", first, "--key", key, "--until", "2099-12-31").done()
    record = cli("pack", first, small, "-o", second, "--key", key, "--sequence", 9, "--json").record()
    assert (record["sequence"], record["exact"], record["until"]) == (9, True, "2099-12-31")
    cli("keygen", tmp_path / "other").done()
    again = ("pack", first, small, "-o", tmp_path / "3")
    cli(*again, "--key", tmp_path / "other").refused("does not verify under any")
    cli(*again).refused("no Ed25519 key to check it")
    assert not (tmp_path / "3").exists()


def test_the_wrong_half_of_a_pair(cli: Cli, small: Path, trained: Path, key: Path) -> None:
    out = trained.with_name("v.bin")
    cli("pack", trained, small, "-o", out, "--key", f"{key}.pub").refused("key.pub: ", "found PUBLIC KEY")
    cli("inspect", trained, small, "--key", key).refused("fleet.key: ", "found PRIVATE KEY")
    assert not out.exists()


def test_what_is_there_stays(cli: Cli, small: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = trained.with_name("v.bin")
    out.write_bytes(b"precious")
    (trained.parent / "link").symlink_to("nowhere")
    for target in (out, trained.parent, trained.parent / "link", "/dev/null"):
        cli("pack", trained, small, "-o", target).refused(str(target), "exists already")
    assert out.read_bytes() == b"precious"
    cli("pack", trained, small, "-o", trained.parent / "no" / "v").refused("no is not a directory")
    monkeypatch.setattr("os.access", lambda path, mode: mode == 4)  # R_OK: a folder that is read alone
    cli("pack", trained, small, "-o", trained.with_name("w")).refused("not a directory to write in")


def test_wrong_usage(cli: Cli, small: Path, trained: Path, tmp_path: Path) -> None:
    pack = ("pack", trained, small, "-o", tmp_path / "v")
    cli(*pack, "--sequence", 65536).misused("--sequence")
    cli(*pack, "--text", "--qr").misused("two forms")
    cli(*pack, "--until", "tomorrow").misused("--until", "'tomorrow' is not a date")
    cli("pack", trained, "-o", tmp_path / "v", "--dtype", "bf16").misused("--dtype", "BUNDLE")
    (tmp_path / "short").write_text("ab" * 8)
    cli(*pack, "--key", tmp_path / "short").refused("short: ", "8 bytes", "at least 16")
    cli(*pack, "--key", tmp_path / "none").refused("none", "No such file")
    cli(*pack[:-1], "-", "--json").misused("--json")
    assert not (tmp_path / "v").exists()
