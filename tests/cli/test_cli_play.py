"""`play`, and `serve --page`, before they serve: what they refuse. The page is tested in tests/serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge import Bundle, Hmac, MicroVector


def test_nobody_else_sees_a_page(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("app-key-1\n")
    options = ("--page", "--api-keys", tmp_path / "keys")
    for host in ("0.0.0.0", "::", "10.0.0.1", "a-name"):
        cli("serve", tiny_bundle, "--host", host, *options).refused("leave out --page", host)


def test_a_page_has_no_part_in_keys(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "d.mac").write_text("00" * 32)
    (tmp_path / "d.mac").chmod(0o600)
    cli("serve", tiny_bundle, "--page", "--key", tmp_path / "d.mac").refused(
        "a page makes vectors", "nobody has signed"
    )


def test_vectors_that_no_page_begins_with(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    basis = Bundle.find(tiny_bundle).basis
    vector = MicroVector.random(basis, 1)
    for name, data, part in (
        ("mac", vector.to_bytes(basis, Hmac(bytes(32))), "HMAC"),
        ("damaged", vector.to_bytes(basis)[:-1] + b"?", "checksum"),
        ("bobs", vector.to_bytes(basis, stream="bob"), "checksum"),
        ("nothing", b"", "empty"),
    ):
        (tmp_path / name).write_bytes(data)
        cli("play", tiny_bundle, "--vector", tmp_path / name, "--no-open").refused(part)


def test_what_is_not_there_to_play_with(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    cli("play", tmp_path / "nothing", "--no-open").refused("nothing")
    cli("play", tiny_bundle, "--vector", tmp_path / "none.bin", "--no-open").refused("none.bin")
    cli("play", tiny_bundle, "--keep", tmp_path / "none" / "kept", "--no-open").refused("none/kept")
    cli("play", tiny_bundle, "--port", "65536").misused("--port")
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_by_another(
    cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        cli("play", tiny_bundle, "--port", taken.getsockname()[1], "--no-open").refused("in use")
