"""`doctor` where it looks about: keys, the hub, its cache, disks. What it cannot look at is a finding."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli.doctor import keys

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what Linux shows in its files")


def test_a_key_that_others_can_read(fault: Callable[..., tuple[str, str]], cli: Cli, tmp_path: Path) -> None:
    cli("keygen", tmp_path / "fleet.key").done()
    assert cli("doctor", "--check", "keys").code == 0
    (tmp_path / "fleet.key").chmod(0o644)
    text, mend = fault("keys")
    assert "fleet.key is a secret key, and others on this machine can read it" in text
    subprocess.run(shlex.split(mend), check=True)
    assert cli("doctor", "--check", "keys").code == 0


def test_a_mac_key_in_another_folder(fault: Callable[..., tuple[str, str]], cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    cli("keygen", other / "device.mac", "--mac").done()
    (other / "device.mac").chmod(0o640)
    text, mend = fault("keys", "--keys", other)
    assert "device.mac is a secret key" in text
    assert mend == f"chmod 600 {other / 'device.mac'}"


def test_keys_that_cannot_be_looked_for(
    fault: Callable[..., tuple[str, str]], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = fault("keys", "--keys", tmp_path / "gone")
    assert text == f"{tmp_path / 'gone'}: No such file or directory: no key was looked for there"
    (tmp_path / "itself").symlink_to("itself")
    cli("keygen", tmp_path / "fleet.key").done()
    assert "fleet.key is a secret key, and its owner's alone" in cli("doctor", "--check", "keys").done()
    monkeypatch.setattr(keys, "_MOST", 2)
    assert "has more than 2 entries" in cli("doctor", "--check", "keys").done()


@pytest.mark.skipif(os.name == "nt", reason="modes of files")
def test_links_and_large_files_are_no_keys(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"-----BEGIN PRIVATE KEY-----" + bytes(1 << 20))
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert "no secret key lies" in cli("doctor", "--check", "keys").done()


def test_an_endpoint_that_does_not_answer(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        text, mend = fault("hub")
    assert "HF_ENDPOINT is http://127.0.0.1:" in text
    assert "does not answer" in text
    assert mend == "unset HF_ENDPOINT"


@pytest.mark.parametrize(
    ("answer", "said"), [(b"SSH-2.0-OpenSSH_9\r\n", "BadStatusLine: SSH-2.0"), (b"", "closed connection")]
)
def test_an_endpoint_that_is_no_web_server(
    answer: bytes, said: str, fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(_answer_once, server, answer)
            text, _ = fault("hub")
            answered.result()
    assert said in text


def _answer_once(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(answer)


def test_an_endpoint_without_a_port(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:port")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    text, _ = fault("hub")
    assert "which does not answer: InvalidURL: nonnumeric port: 'port'" in text


def test_a_user_without_a_home(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: int) -> None:
        raise KeyError("no such user")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    text, mend = fault("machine")
    assert "models of the hub" in text
    assert "~/.cache/huggingface/hub is in the home folder, and this user has none" in text
    assert mend == "export HF_HOME=FOLDER"


def test_a_cache_that_cannot_be_looked_at(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / ("x" * 300)))
    text, mend = fault("machine")
    assert "where models of the hub go cannot be looked at: " in text
    assert "File name too long" in text
    assert mend == "export HF_HOME=FOLDER"


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/x"}, "~/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/x", "HF_HOME": "~/h"}, "~/h/hub"),
        ({"HF_HOME": "$HOME/h", "HF_HUB_CACHE": "~/c"}, "~/c"),
        ({"HF_HOME": "$HOME/h", "HUGGINGFACE_HUB_CACHE": "~/old"}, "~/old"),
    ],
)
def test_the_cache_is_where_the_client_has_it(
    variables: dict[str, str], where: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cache = where.replace("~", str(tmp_path))
    ask = "import huggingface_hub.constants; print(huggingface_hub.constants.HF_HUB_CACHE)"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == f"{cache}\n"
    record = json.loads(cli("doctor", "--check", "machine", "--json").stdout_bytes)
    assert any(one["text"].endswith(f" models of the hub in {cache}") for one in record["findings"])


def test_a_cache_that_is_no_folder(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    text, mend = fault("machine")
    assert f"{tmp_path / 'file'}, where models of the hub go, is no folder" in text
    assert mend == "export HF_HOME=FOLDER"


@LINUX
def test_a_disk_without_room(fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/proc")  # which is not writable, or has no byte free
    text, mend = fault("machine")
    assert "/proc" in text
    assert mend == "export HF_HOME=FOLDER"


def test_the_hub_is_not_asked_where_it_is_forbidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "HF_HUB_OFFLINE is set" in cli("doctor", "--check", "hub").done()
