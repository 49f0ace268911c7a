"""`trust` on the command line: what owners do, and what devices make of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import servers
import support
from invocation import Cli, contents, in_process

from tinylora_edge import save_basis
from tinylora_edge.limits import TRUST_BYTES
from tinylora_edge.trust import Trust

DAY = ("--day", "2026-03-01")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys, a basis, vectors under two of the keys, and a trust file that lists one."""
    cli, folder, here = in_process(), tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(folder)
    save_basis(support.random_basis(blocks=5, groups=13), folder / "b.basis.gguf")
    for name in ("root", "bob", "next", "fleet", "spare"):
        cli("keygen", name).done()
    new = cli("vector", "new", "b.basis.gguf", "-o", "-", "--random", 0.3).stdout_bytes
    for number, name in enumerate(("fleet", "spare"), 1):
        pack = ("vector", "pack", "-", "b.basis.gguf", "-o", f"{name}.bin", "--sign", name, "--version", 1)
        cli(*pack, "--sequence", number, stdin=new).done()
    cli("trust", "init", "t.json", "--root", "root", *DAY).done()
    cli("trust", "add", "t.json", "fleet.pub", "--root", "root", *DAY).done()
    os.chdir(here)
    return folder


@pytest.fixture
def ready(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test runs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_life_of_a_trust_file(cli: Cli, ready: Path) -> None:
    verify = ("vector", "verify", "fleet.bin", "b.basis.gguf", "--trust", "t.json")
    assert "under ed25519:" in cli(*verify).done()
    cli("vector", "verify", "spare.bin", "b.basis.gguf", "--trust", "t.json").refused("does not verify")
    add = ("trust", "add", "t.json", "spare.pub", "--root", "root", *DAY)
    record = cli(*add, "--stream", "eu-*", "--to", "2099-12-31", "--json").record()
    assert record["keys"][1]["streams"] == ["eu-*"]
    assert (record["root"]["version"], record["list"]["version"], record["missing"]) == (1, 3, "")
    spare = ("vector", "verify", "spare.bin", "b.basis.gguf", "--trust", "t.json")
    cli(*spare).refused("does not count: it signs for eu-*, and not for stream 'default'")
    cli(*spare, "--stream", "eu-7").done()
    cli("trust", "revoke", "t.json", "fleet.pub", "--root", "root", *DAY).done()
    cli(*verify).refused("which does not count: it was revoked on 2026-03-01")
    cli("trust", "rotate", "t.json", "--root", "root", "--new", "next", *DAY).done()
    shown = cli("trust", "show", "t.json").done()
    assert "root" in shown
    assert "revoked on 2026-03-01" in shown
    assert "all there, and hold" in shown
    cli("trust", "add", "t.json", "bob.pub", "--root", "root").refused("is no key of root 2")
    cli(*spare, "--stream", "eu-7").done()


def test_a_file_that_came_another_way(cli: Cli, ready: Path) -> None:
    old = (ready / "t.json").read_bytes()
    (ready / "device.json").write_bytes(old)
    cli("trust", "revoke", "t.json", "fleet.pub", "--root", "root", *DAY).done()
    assert "took root 1, list 3" in cli("trust", "accept", "device.json", "t.json").done()
    assert "nothing new" in cli("trust", "accept", "device.json", "t.json").done()
    (ready / "old.json").write_bytes(old)
    cli("trust", "accept", "device.json", "old.json").refused("was already accepted")
    cli("trust", "accept", "device.json", "fleet.bin").refused("no trust file")
    assert (ready / "device.json").read_bytes() == (ready / "t.json").read_bytes()


def test_two_owners(cli: Cli, ready: Path) -> None:
    init = ("trust", "init", "two.json", "--root", "root", "--root", "bob.pub", "--threshold", 2, *DAY)
    result = cli(*init)
    assert result.code == 0
    assert "root 1 has 1 of 2 signatures of root 1, the list has 1 of 2" in result.stderr
    assert "lacking: " in cli("trust", "show", "two.json").done()
    cli("vector", "verify", "fleet.bin", "b.basis.gguf", "--trust", "two.json").refused("which asks for 2")
    (ready / "root-folder").mkdir()
    cli("trust", "publish", "two.json", "--to", "root-folder").refused("which asks for 2")
    cli("trust", "sign", "two.json", "--root", "spare").refused("is no key of root 1")
    cli("trust", "sign", "two.json", "--root", "bob").done()
    assert cli("trust", "add", "two.json", "fleet.pub", "--root", "root", *DAY).code == 0
    cli("trust", "sign", "two.json", "--root", "bob").done()
    cli("vector", "verify", "fleet.bin", "b.basis.gguf", "--trust", "two.json").done()
    rotate = ("trust", "rotate", "two.json", "--root", "bob", "--new", "next", *DAY)
    cli(*rotate).refused("root 2 asks for 2 signatures of 1 keys", "--threshold", "name more keys")
    rotate = (*rotate, "--new", "spare")
    assert "root 2 has 1 of 2 signatures of root 1" in cli(*rotate).stderr
    cli("trust", "sign", "two.json", "--root", "root").done()
    root = Trust.read((ready / "two.json").read_bytes()).root
    assert (root.version, root.threshold, len(root.keys)) == (2, 2, 2)
    last = ("trust", "rotate", "two.json", "--root", "next", "--root", "spare", "--new", "root", *DAY)
    assert "1 of which sign" in cli(*last, "--threshold", 1).done()


def test_what_is_not_named_stays_for_a_key_that_is_listed(cli: Cli, ready: Path) -> None:
    add = ("trust", "add", "t.json", "spare.pub", "--root", "root", *DAY, "--json")
    days = {"from": "2026-03-02", "to": "2099-12-31"}

    def said(*options: str) -> dict[str, object]:
        return {
            name: value for name, value in cli(*add, *options).record()["keys"][1].items() if name in kept
        }

    kept = {"streams", "bundles", "from", "to"}
    first = said("--stream", "eu-*", "--bundles", "--from", "2026-03-02", "--to", "2027-12-31")
    assert first == {"streams": ["eu-*"], "bundles": True, "from": "2026-03-02", "to": "2027-12-31"}
    assert said("--to", "2099-12-31") == {"streams": ["eu-*"], "bundles": True, **days}
    assert said("--stream", "us-*", "--stream", "a") == {"streams": ["us-*", "a"], "bundles": True, **days}
    assert said("--no-bundles") == said() == {"streams": ["us-*", "a"], **days}
    assert said("--bundles") == {"streams": ["us-*", "a"], "bundles": True, **days}


def test_the_next_command_is_signed_with_a_private_key(cli: Cli, ready: Path) -> None:
    init = ("trust", "init", "--root", "bob.pub", "--root", "root", *DAY)
    assert "next: tinylora-edge trust add n.json fleet.key.pub --root root\n" in cli(*init, "n.json").done()
    assert "next:" not in cli("trust", "init", "o.json", "--root", "bob.pub", *DAY).stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("init", "t.json", "--root", "root"), ("t.json exists already",)),
        (("init", "n.json", "--root", "root", "--threshold", 2), ("asks for 2 signatures of 1 keys",)),
        (("init", "n.json", "--root", "none"), ("No such file",)),
        (("add", "t.json", "fleet.pub", "--root", "root.pub"), ("holds a PUBLIC KEY",)),
        (("add", "t.json", "b.basis.gguf", "--root", "root"), ("PEM",)),
        (("add", "none", "fleet.pub", "--root", "root"), ("none",)),
        (("add", "b.basis.gguf", "fleet.pub", "--root", "root"), ("is refused: it is no trust file",)),
        (("revoke", "t.json", "spare.pub", "--root", "root"), ("is not on the list",)),
        (("revoke", "t.json", "ed25519:0000000000000000", "--root", "root"), ("is not on the list",)),
        (("add", "t.json", "spare.pub", "--root", "root", "--stream", "a*b"), ("no pattern of streams",)),
    ],
)
def test_what_is_refused_changes_nothing(
    cli: Cli, ready: Path, words: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    before = contents(ready)
    cli("trust", *words).refused(*parts)
    assert contents(ready) == before


def test_a_day_that_is_none(cli: Cli, ready: Path) -> None:
    add = ("trust", "add", "t.json", "spare.pub", "--root", "root")
    for option in ("--from", "--to", "--expires", "--day"):
        cli(*add, option, "soon").misused(option, "write it as 2026-12-31")


class TestFetch:
    @pytest.fixture
    def device(self, cli: Cli, ready: Path) -> Path:
        (ready / "mirror").mkdir()
        (ready / "device.json").write_bytes((ready / "t.json").read_bytes())
        cli("publish", "fleet.bin", "b.basis.gguf", "--to", "mirror").done()
        cli("trust", "publish", "t.json", "--to", "mirror").done()
        return ready

    def command(self, url: str) -> tuple[object, ...]:
        return (
            "fetch",
            url,
            "b.basis.gguf",
            "-o",
            "v.bin",
            "--trust",
            "device.json",
            "--fresh",
            "ignore",
            "--json",
        )

    def test_a_newer_file_is_taken_first(self, cli: Cli, device: Path) -> None:
        with servers.static(device / "mirror") as (url, seen):
            record = cli(*self.command(url)).record()
            assert record["trust"] == {"root": 1, "list": 2, "changed": False}
            cli("trust", "revoke", "t.json", "fleet.pub", "--root", "root", *DAY).done()
            assert "published" in cli("trust", "publish", "t.json", "--to", "mirror").done()
            cli(*self.command(url)).refused("revoked on 2026-03-01")
            assert (device / "device.json").read_bytes() == (device / "t.json").read_bytes()
            del seen[:]
            cli(*self.command(url)).refused("revoked on 2026-03-01")
            assert seen[0] == ("/trust.json", seen[0][1])
            assert seen[0][1] is not None, "where nothing is new, nothing is sent"

    def test_a_mirror_that_rolls_it_back(self, cli: Cli, device: Path) -> None:
        old = (device / "t.json").read_bytes()
        cli("trust", "add", "t.json", "spare.pub", "--root", "root", *DAY).done()
        cli("trust", "publish", "t.json", "--to", "mirror").done()
        with servers.static(device / "mirror") as (url, _):
            cli(*self.command(url)).record()
            (device / "mirror" / "trust.json").write_bytes(old)
            before = contents(device)
            cli(*self.command(url)).refused("list 3 of root 1 was already accepted")
            assert contents(device) == before

    @pytest.mark.parametrize(
        ("body", "part"),
        [
            (b"{}", "lacks keys"),
            (b"x" * (TRUST_BYTES + 1), "more than 65536 bytes, the longest trust file"),
            (b"[" * 50_000, "nested"),
        ],
    )
    def test_a_mirror_that_sends_something_else(self, cli: Cli, device: Path, body: bytes, part: str) -> None:
        (device / "mirror" / "trust.json").write_bytes(body)
        with servers.static(device / "mirror") as (url, _):
            before = contents(device)
            cli(*self.command(url)).refused(part)
            assert contents(device) == before

    def test_a_mirror_without_it(self, cli: Cli, device: Path) -> None:
        (device / "mirror" / "trust.json").unlink()
        with servers.static(device / "mirror") as (url, _):
            cli(*self.command(url)).refused("404", "no trust file is published there")
        assert not (device / "v.bin").exists()

    def test_a_drip_ends_with_the_one_deadline(self, cli: Cli, device: Path) -> None:
        def drip(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            while True:
                connection.sendall(b"{")
                time.sleep(0.05)

        with servers.answering(drip) as (url, requests):
            cli(*self.command(url), "--deadline", 1, "--attempts", 2).refused("trust.json", "within 1 s")
        assert all(b"/trust.json" in request for request in requests)

    def test_what_is_published_is_verified_and_never_falls(self, cli: Cli, device: Path) -> None:
        old = (device / "t.json").read_bytes()
        cli("trust", "add", "t.json", "spare.pub", "--root", "root", *DAY).done()
        cli("trust", "publish", "t.json", "--to", "mirror").done()
        assert "was there already" in cli("trust", "publish", "t.json", "--to", "mirror").done()
        (device / "old.json").write_bytes(old)
        cli("trust", "publish", "old.json", "--to", "mirror").refused("was already accepted")
        cli("trust", "init", "other.json", "--root", "bob").done()
        cli("trust", "publish", "other.json", "--to", "mirror").refused("another root 1")
        cut = json.loads(old)
        cut["keys"]["signatures"] = []
        (device / "cut.json").write_text(json.dumps(cut))
        cli("trust", "publish", "cut.json", "--to", "mirror").refused("signed by 0")
