"""`vector text`, and that every command reads what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge import Basis


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
