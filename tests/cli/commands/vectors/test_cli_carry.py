"""keygen, `vector pack`, `verify`, `text`, `qr`, and that every command reads what they write."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
import support
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from invocation import Cli, Outcome, contents

from tinylora_edge import Basis, Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy, save_basis


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A basis of 13 values in a file."""
    path = tmp_path_factory.mktemp("small") / "small.basis.gguf"
    save_basis(support.random_basis(blocks=5, groups=13), path)
    return path


@pytest.fixture(scope="module")
def small_basis() -> Basis:
    return support.random_basis(blocks=5, groups=13)


@pytest.fixture
def trained(cli: Cli, small: Path, tmp_path: Path) -> Path:
    """What `train` leaves: 13 fp32 values under a checksum."""
    path = tmp_path / "trained.bin"
    cli("vector", "new", small, "-o", path, "--random", 0.3, "--sequence", 3).done()
    return path


@pytest.fixture
def key(cli: Cli, tmp_path: Path) -> Path:
    cli("keygen", tmp_path / "fleet.key").done()
    return tmp_path / "fleet.key"


class TestKeygen:
    def test_a_pair(self, cli: Cli, tmp_path: Path) -> None:
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
        assert set(contents(tmp_path)) == {"a.key", "a.key.pub"}

    def test_keys_differ(self, cli: Cli, tmp_path: Path) -> None:
        for name in ("a", "b"):
            cli("keygen", tmp_path / name).done()
            cli("keygen", tmp_path / f"{name}.mac", "--mac").done()
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 6

    def test_a_mac(self, cli: Cli, tmp_path: Path) -> None:
        shown = cli("keygen", tmp_path / "d.mac", "--mac").done()
        text = (tmp_path / "d.mac").read_text()
        assert len(bytes.fromhex(text)) == 32
        assert text.strip() not in shown
        assert stat.S_IMODE((tmp_path / "d.mac").stat().st_mode) == 0o600
        assert set(contents(tmp_path)) == {"d.mac"}

    @pytest.mark.parametrize("there", ["a.key", "a.key.pub"])
    def test_a_key_is_never_lost_by_accident(self, cli: Cli, tmp_path: Path, there: str) -> None:
        (tmp_path / there).write_text("precious")
        cli("keygen", tmp_path / "a.key").refused(there, "exists already", "--force")
        assert contents(tmp_path) == {there: b"precious"}
        cli("keygen", tmp_path / "a.key", "--force").done()
        Ed25519Signer.from_pem((tmp_path / "a.key").read_bytes())

    def test_a_missing_directory(self, cli: Cli, tmp_path: Path) -> None:
        cli("keygen", tmp_path / "no" / "a.key").refused(str(tmp_path / "no"))

    def test_openssl_reads_the_pair(self, cli: Cli, key: Path) -> None:
        done = subprocess.run(["openssl", "pkey", "-in", key, "-pubout"], capture_output=True, check=False)
        assert done.stdout == key.with_name("fleet.key.pub").read_bytes(), done.stderr


class TestPack:
    def test_signed(self, cli: Cli, small: Path, small_basis: Basis, trained: Path, key: Path) -> None:
        out = trained.with_name("v.bin")
        shown = cli(
            "vector", "pack", trained, small, "-o", out, "--sign", key, "--dtype", "bf16", "--sequence", 9
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
            cli("vector", "pack", trained, small, "-o", tmp_path / "v", "--mac", mac, "--force").done()
            outs.append((tmp_path / "v").read_bytes())
        assert outs[0] == outs[1]
        assert len(outs[0]) == 67
        Policy("mac", keys=[Hmac(b"\xab" * 32)]).check(outs[0], small_basis)

    def test_as_it_came(self, cli: Cli, small: Path, trained: Path) -> None:
        result = cli("vector", "pack", trained, small, "-o", "-")
        assert result.stdout_bytes == trained.read_bytes()

    def test_a_raw_payload(self, cli: Cli, small: Path, tmp_path: Path) -> None:
        raw = cli("vector", "new", small, "-o", "-", "--random", 1, "--raw").stdout_bytes
        record = cli("vector", "pack", "-", small, "-o", tmp_path / "v", "--json", stdin=raw)
        assert "raw payload has no checksum" in record.stderr
        assert (tmp_path / "v").read_bytes()[7:-4] == raw

    def test_again_under_the_same_key_alone(
        self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        cli("vector", "pack", trained, small, "-o", first, "--sign", key).done()
        record = cli(
            "vector", "pack", first, small, "-o", second, "--sign", key, "--sequence", 9, "--json"
        ).record()
        assert (record["sequence"], record["exact"]) == (9, True)
        cli("keygen", tmp_path / "other").done()
        cli("vector", "pack", first, small, "-o", tmp_path / "3", "--sign", tmp_path / "other").refused(
            "does not verify under any"
        )
        cli("vector", "pack", first, small, "-o", tmp_path / "3").refused("no Ed25519 key to check it")
        assert not (tmp_path / "3").exists()

    def test_the_wrong_half_of_a_pair(self, cli: Cli, small: Path, trained: Path, key: Path) -> None:
        out = trained.with_name("v.bin")
        cli("vector", "pack", trained, small, "-o", out, "--sign", f"{key}.pub").refused(
            "fleet.key.pub: ", "this verifies"
        )
        cli("vector", "verify", trained, small, "--key", key).refused("fleet.key: ", "this signs")
        assert not out.exists()

    def test_a_key_that_others_can_read_is_named(
        self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path
    ) -> None:
        key.chmod(0o644)
        result = cli("vector", "pack", trained, small, "-o", tmp_path / "v", "--sign", key)
        assert result.code == 0
        assert result.stderr == f"warning: {key} can be read by others on this machine: chmod 600 {key}\n"

    def test_wrong_usage(self, cli: Cli, small: Path, trained: Path, key: Path, tmp_path: Path) -> None:
        pack = ("vector", "pack", trained, small, "-o", tmp_path / "v")
        cli(*pack, "--sign", key, "--mac", "ab" * 32).misused("one tag")
        cli(*pack, "--sequence", 65536).misused("--sequence")
        cli(*pack, "--mac", "ab" * 8).refused("8 bytes", "at least 16")
        cli(*pack, "--mac", "no-such-file").refused("no-such-file", "does not exist")
        cli(*pack, "--sign", tmp_path / "none").refused("No such file")
        cli(*pack[:-1], "-", "--json").misused("--json")


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
        cli(*verify, older, small, "--stream", "bob").done()

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


class TestText:
    @pytest.mark.parametrize("form", ["base64url", "hex"])
    @pytest.mark.parametrize("scheme", [[], ["--scheme"]])
    def test_every_command_reads_it(
        self,
        cli: Cli,
        small: Path,
        small_basis: Basis,
        trained: Path,
        tmp_path: Path,
        form: str,
        scheme: list[str],
    ) -> None:
        line = cli("vector", "text", trained, "--form", form, *scheme).done()
        assert line.count("\n") == 1
        path = tmp_path / "v.txt"
        cli("vector", "text", trained, "--form", form, *scheme, "-o", path).done()
        assert path.read_text() == line
        for source, stdin in ((path, b""), ("-", line.encode()), ("-", line.replace("A", "A\n").encode())):
            record = cli("vector", "inspect", source, small, "--json", stdin=stdin).record()
            assert (record["verified"], record["bytes"], record["sequence"]) == (True, 63, 3)
        cli("vector", "verify", path, small).done()
        assert cli("vector", "pack", path, small, "-o", "-").stdout_bytes == trained.read_bytes()
        if form == "base64url":
            assert cli("vector", "text", path).done() == cli("vector", "text", trained).done()

    def test_text_that_was_cut(self, cli: Cli, small: Path, trained: Path) -> None:
        line = cli("vector", "text", trained).done().strip()
        cli("vector", "inspect", "-", small, stdin=line[:-3].encode()).refused("cut")
        cli("vector", "inspect", "-", small, stdin=line[:-4].encode()).refused("60 bytes")

    def test_what_is_no_vector(self, cli: Cli) -> None:
        cli("vector", "text", "-", stdin=b"\x99").refused("begins no frame")


class TestQR:
    @pytest.mark.parametrize(
        "options", [[], ["--binary"], ["--correction", "H"], ["--binary", "--correction", "L"]]
    )
    def test_every_command_reads_the_picture(
        self, cli: Cli, small: Path, trained: Path, tmp_path: Path, options: list[str]
    ) -> None:
        path = tmp_path / "v.png"
        record = cli("vector", "qr", trained, "-o", path, "--json", *options).record()
        assert path.read_bytes().startswith(b"\x89PNG")
        assert cli("vector", "pack", path, small, "-o", "-").stdout_bytes == trained.read_bytes()
        assert cli("vector", "inspect", path, small, "--json").record()["verified"]
        assert record["content"] == ("bytes" if "--binary" in options else "text")
        assert record["modules"] == 17 + 4 * record["version"]

    def test_a_camera_reads_text(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        """zxing is what many phones use."""
        import zxingcpp
        from PIL import Image

        cli("vector", "qr", trained, "-o", tmp_path / "v.png").done()
        photo = (
            Image.open(tmp_path / "v.png")
            .convert("L")
            .rotate(17, expand=True, fillcolor=200)
            .resize((400, 400))
        )
        (found,) = zxingcpp.read_barcodes(photo)
        assert found.text == cli("vector", "text", trained, "--scheme").done().strip()
        photo.save(tmp_path / "photo.jpg", quality=60)
        line = cli("vector", "text", tmp_path / "photo.jpg", "--scheme").done()
        assert line.strip() == found.text

    def test_what_the_terminal_shows_is_a_code(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        """Drawn again from its characters, it reads."""
        import numpy as np
        import zxingcpp

        lines = cli("vector", "qr", trained).done().rstrip("\n").split("\n")
        width = max(map(len, lines))
        halves = {" ": (255, 255), "▄": (255, 0), "▀": (0, 255), "█": (0, 0)}
        rows = [[halves[cell][half] for cell in line.ljust(width)] for line in lines for half in (0, 1)]
        picture = np.kron(np.array(rows, np.uint8), np.ones((4, 4), np.uint8))
        (found,) = zxingcpp.read_barcodes(np.pad(picture, 20, constant_values=255))
        assert found.text == cli("vector", "text", trained, "--scheme").done().strip()

    def test_on_a_terminal_it_is_black_on_white(self, trained: Path) -> None:
        from io import StringIO

        from rich.console import Console

        from tinylora_edge.cli.shared import qr_image

        out = StringIO()
        console = Console(file=out, force_terminal=True, color_system="truecolor", width=200)
        console.print(qr_image.drawn(qr_image.make(trained.read_bytes())), soft_wrap=True)
        assert out.getvalue().startswith("\x1b[38;2;0;0;0;48;2;255;255;255m")

    def test_pictures_that_hold_none(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        from PIL import Image

        Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
        cli("vector", "inspect", tmp_path / "blank.png").refused("0 readable QR codes")
        cli("vector", "qr", trained, "-o", tmp_path / "v.png").done()
        one = Image.open(tmp_path / "v.png")
        two = Image.new("L", (2 * one.width, one.height), 255)
        two.paste(one)
        two.paste(one, (one.width, 0))
        two.save(tmp_path / "two.png")
        cli("vector", "inspect", tmp_path / "two.png").refused("2 readable QR codes")
        (tmp_path / "cut.png").write_bytes((tmp_path / "v.png").read_bytes()[:90])
        cli("vector", "inspect", tmp_path / "cut.png").refused("picture cannot be read")
        Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
        cli("vector", "inspect", tmp_path / "bomb.png").refused("9000 x 9000 pixels")

    def test_a_vector_that_no_code_holds(self, cli: Cli) -> None:
        cli("vector", "qr", "-", "-o", "x.png", stdin=bytes(4000)).refused("4000 bytes fit no QR code")
        assert not Path("x.png").exists()

    def test_without_the_packages(self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch) -> None:
        import sys

        cli("vector", "qr", trained, "-o", tmp_path / "v.png").done()
        monkeypatch.setitem(sys.modules, "zxingcpp", None)
        cli("vector", "inspect", tmp_path / "v.png").refused('pip install "tinylora-edge[ship]"')
        monkeypatch.setitem(sys.modules, "segno", None)
        cli("vector", "qr", trained).refused('pip install "tinylora-edge[ship]"')


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


def test_links(cli: Cli, small: Path) -> None:
    record = cli("links", 13, "--json").record()
    assert record == cli("links", small, "--json").record()
    assert [frame["bytes"] for frame in record["frames"]] == [63, 67, 123, 37, 41, 97]
    by_name = {carrier["carrier"]: carrier for carrier in record["carriers"]}
    slowest = by_name["LoRaWAN EU868 down, DR0 (SF12, 125 kHz)"]
    assert [cell["fits"] for cell in slowest["fits"]] == [False, False, False, True, True, False]
    assert slowest["fits"][3]["airtime_ms"] == pytest.approx(2301.952)
    assert slowest["fits"][0]["airtime_ms"] is None
    table: Outcome = cli("links", 13)
    row = next(line for line in table.done().splitlines() if line.startswith("LoRaWAN EU868 down, DR0"))
    assert row.endswith("-  2,302 ms  2,466 ms        -")
    assert all(len(line) <= 120 for line in table.stdout.splitlines())
    cli("links", 0).misused("1 to 100,000")
    cli("links", "nothing-there").refused("does not exist")
