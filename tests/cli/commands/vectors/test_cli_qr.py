"""`vector qr`, and that every command reads what it draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from invocation import Cli


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
