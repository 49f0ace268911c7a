"""`serve` and `play` before they serve: what they refuse. What they answer is tested in tests/serve."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge import Hmac, MicroVector, load_bundle


def test_nobody_else_is_answered_without_keys(cli: Cli, tiny_bundle: Path) -> None:
    for host in ("0.0.0.0", "::", "a-name"):
        cli("serve", tiny_bundle, "--host", host).refused("can be reached by others", "--api-keys FILE")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ("has no API key",)),
        ("short", ("line 1", "8 to 512 printable ASCII characters")),
        ("# fine\nlong-enough ../x", ("line 2", "not a valid user")),
    ],
)
def test_files_of_keys_that_are_none(cli, tiny_bundle, tmp_path, content, parts):
    (tmp_path / "keys").write_text(content)
    (tmp_path / "keys").chmod(0o600)
    cli("serve", tiny_bundle, "--api-keys", tmp_path / "keys").refused(*parts)


def test_keys_that_others_can_read_are_warned_of(cli: Cli, tmp_path: Path) -> None:
    (path := tmp_path / "keys").write_text("alice-key alice\n")
    for mode, warned in ((0o644, True), (0o600, False)):
        path.chmod(mode)
        ended = cli("serve", tmp_path / "nothing", "--api-keys", path)
        assert ended.code == 1
        assert (f"{path} can be read by others on this machine: chmod 600" in ended.stderr) == warned


def test_what_is_not_there_or_taken(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    cli("serve", tmp_path / "nothing").refused("nothing")
    cli("serve", tiny_bundle, "--port", "65536").misused("--port")
    (tmp_path / "no.db").write_bytes(b"no database" * 1000)
    cli("serve", tiny_bundle, "--store", tmp_path / "no.db").refused("not a database")
    cli("play", tmp_path / "nothing", "--no-open").refused("nothing")
    cli("play", tiny_bundle, "--keep", tmp_path / "none" / "kept", "--no-open").refused("none/kept")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cli("serve", tiny_bundle, "--port", taken.getsockname()[1]).refused("in use")


def test_an_address_that_cannot_be_printed(process: Cli, tiny_bundle: Path) -> None:
    with open("/dev/full", "wb") as full:
        options = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        found = process("serve", tiny_bundle, "--port", 0, **options)
    assert (found.code, found.stderr) == (1, "error: No space left on device\n")


def test_vectors_that_no_page_begins_with(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    basis = load_bundle(tiny_bundle).basis(numbers=13)
    vector = MicroVector.random(basis, 1)
    for data, part in (
        (vector.to_bytes(basis, Hmac(bytes(32))), "HMAC"),
        (vector.to_bytes(basis)[:-1] + b"?", "checksum"),
        (b"", "0 bytes are not a frame"),
    ):
        (tmp_path / "v").write_bytes(data)
        cli("play", tiny_bundle, "--vector", tmp_path / "v", "--no-open").refused(part)


def test_the_extra_that_is_missing_is_named(cli, tiny_bundle, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tinylora_edge.serve.")]:
        if not name.startswith(("tinylora_edge.serve.store", "tinylora_edge.serve.access")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.setitem(sys.modules, "starlette", None)
    cli("serve", tiny_bundle).refused('pip install "tinylora-edge[serve]"')
