"""`fetch` and a server that shows an old vector for ever: warned of, refused by choice."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import servers
import support
from invocation import Cli

from tinylora_edge import save_basis

TODAY = datetime.now(UTC).date()


@pytest.fixture
def ready(cli: Cli, tmp_path: Path) -> Path:
    """A folder with a basis, a key pair, frames 1 and 2 of alice, and a root with the first."""
    basis = tmp_path / "b.basis.gguf"
    save_basis(support.random_basis(blocks=5, groups=13), basis)
    cli("keygen", tmp_path / "key").done()
    for number in (1, 2):
        new = cli("vector", "new", basis, "-o", "-", "--random", 0.3, "--seed", number)
        pack = ("vector", "pack", "-", basis, "-o", tmp_path / f"{number}.bin", "--dtype", "int8")
        bound = ("--sign", tmp_path / "key", "--stream", "alice", "--sequence", number)
        cli(*pack, *bound, stdin=new.stdout_bytes).done()
    publish(cli, tmp_path, 1)
    return tmp_path


def publish(cli: Cli, ready: Path, number: int, *options: object) -> str:
    command = ("publish", ready / f"{number}.bin", ready / "b.basis.gguf", "--to", ready / "root")
    return cli(*command, "--stream", "alice", "--sign", ready / "key", *options).done()


def fetch(ready: Path, url: str, *options: object) -> tuple[object, ...]:
    trusted = ("--key", f"{ready / 'key'}.pub", "--state", ready / "state", "--stream", "alice")
    return ("fetch", url, ready / "b.basis.gguf", "-o", ready / "v.bin", *trusted, *options)


def test_a_mirror_that_is_frozen(cli: Cli, ready: Path) -> None:
    said = publish(cli, ready, 1)
    assert f"the newest until {TODAY + timedelta(29)}" in said
    with servers.static(ready / "root") as (url, seen):
        first = cli(*fetch(ready, url, "--fresh", "require", "--json")).record()
        assert (first["sequence"], first["stale"]) == (1, "")
        assert [path.rpartition("/")[2] for path, _ in seen] == ["latest", "latest.stmt"]
        assert cli(*fetch(ready, url, "--fresh", "require", "--json")).record()["not_modified"]
        assert len(seen) == 3, "the statement holds still, and is not asked for"

        later = ("--today", (TODAY + timedelta(30)).isoformat())
        warned = cli(*fetch(ready, url, *later))
        assert warned.code == 0
        assert f"no trusted key has said since {TODAY + timedelta(29)}" in warned.stderr
        cli(*fetch(ready, url, *later, "--fresh", "require")).refused(
            "may not be the newest", "stays as it was"
        )
        cli(*fetch(ready, url, *later, "--fresh", "ignore")).done()

        publish(cli, ready, 2, "--fresh-days", 60)
        assert cli(*fetch(ready, url, *later, "--fresh", "require", "--json")).record()["sequence"] == 2
    assert (ready / "v.bin").read_bytes() == (ready / "2.bin").read_bytes()


def test_a_mirror_that_holds_the_newest_back(cli: Cli, ready: Path) -> None:
    """The new statement is there, and the vector that it is about is not."""
    home = next((ready / "root").glob("*/alice"))
    publish(cli, ready, 2)
    (home / "latest").write_bytes((ready / "1.bin").read_bytes())
    with servers.static(ready / "root") as (url, _):
        cli(*fetch(ready, url, "--fresh", "require")).refused(
            "it has sequence 1, and 2 was published already"
        )
        assert not (ready / "v.bin").exists()
        assert "2 was published already" in cli(*fetch(ready, url)).stderr


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"?" * 75)])
def test_a_mirror_that_hides_or_forges_the_statement(cli: Cli, ready: Path, spoil) -> None:
    spoil(next((ready / "root").glob("*/alice/latest.stmt")))
    with servers.static(ready / "root") as (url, _):
        warned = cli(*fetch(ready, url, "--json"))
        assert warned.stderr.startswith("warning: the server's vector may not be the newest")
        assert "no trusted key has ever said" in json.loads(warned.stdout)["stale"]
        cli(*fetch(ready, url, "--fresh", "require")).refused("no trusted key has ever said")


def test_a_frame_of_another_stream_is_refused(cli: Cli, ready: Path) -> None:
    """A server that swaps two users' vectors."""
    home = next((ready / "root").glob("*/alice"))
    home.rename(home.with_name("bob"))
    with servers.static(ready / "root") as (url, _):
        cli(*fetch(ready, url, "--stream", "bob")).refused("does not verify", "another stream than 'bob'")


def test_what_the_key_did_not_sign_is_not_said_to_be_the_newest(cli: Cli, ready: Path) -> None:
    cli("keygen", ready / "other").done()
    command = (
        "publish",
        ready / "2.bin",
        ready / "b.basis.gguf",
        "--to",
        ready / "root",
        "--stream",
        "alice",
    )
    cli(*command, "--sign", ready / "other").refused("does not verify")
    cli(*command, "--sign", ready / "key", "--mac", "ab" * 32).misused("one tag")


def test_a_device_without_a_clock(cli: Cli, ready: Path) -> None:
    publish(cli, ready, 1)
    with servers.static(ready / "root") as (url, seen):
        for _ in range(2):
            record = cli(*fetch(ready, url, "--fresh", "require", "--today", "none", "--json")).record()
            assert record["stale"] == ""
        assert len(seen) == 4, "it asks for the statement every time: that is its clock"
