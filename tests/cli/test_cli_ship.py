"""The whole way on the command line: keygen, pack, publish, a web server, fetch."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
import servers
import support
from invocation import Cli, contents, write_vector

from tinylora_edge.formats.side_tensors import load_bases, save_bases
from tinylora_edge.serve.store import Store


@pytest.fixture
def ready(cli: Cli, tmp_path: Path) -> Path:
    save_bases(support.bases_with(support.random_basis(blocks=5, groups=13)), tmp_path / "b.basis.gguf")
    cli("keygen", tmp_path / "key").done()
    for number in (1, 2, 3):
        new = write_vector(tmp_path / "new.bin", tmp_path / "b.basis.gguf", seed=number)
        pack = ("pack", new, tmp_path / "b.basis.gguf", "-o", tmp_path / f"{number}.bin")
        cli(*pack, "--key", tmp_path / "key", "--sequence", number).done()
    (tmp_path / "root").mkdir()
    return tmp_path


def test_from_one_machine_to_another(cli: Cli, ready: Path) -> None:
    basis, out, state = ready / "b.basis.gguf", ready / "device" / "v.bin", ready / "device" / "state"
    out.parent.mkdir()
    publish = ("publish", "--to", ready / "root")
    record = cli(*publish, ready / "1.bin", basis, "--json").record()
    assert (record["sequence"], record["changed"], record["tag"]) == (1, True, "Ed25519")
    with servers.static(ready / "root") as (url, _):
        fetch = ("fetch", url, basis, "-o", out, "--key", f"{ready / 'key'}.pub", "--state", state, "--json")
        first = cli(*fetch).record()
        assert (first["changed"], first["sequence"]) == (True, 1)
        assert out.read_bytes() == (ready / "1.bin").read_bytes()
        assert cli(*fetch).record()["changed"] is False
        cli(*publish, ready / "3.bin", basis).done()
        assert cli(*fetch).record()["sequence"] == 3
        assert out.read_bytes() == (ready / "3.bin").read_bytes()

        # An attacker who holds the server puts the old frame back, and then something of his own.
        latest = ready / "root" / record["latest"]
        before = contents(out.parent)
        latest.write_bytes((ready / "2.bin").read_bytes())
        cli(*fetch).refused("sequence 2, but 3 was already accepted")
        cli("keygen", ready / "evil").done()
        forged = ("pack", ready / "root" / record["path"], basis, "-o", "-")
        cli(*forged, "--key", ready / "evil").refused("does not verify")
        plain = write_vector(ready / "w.bin", basis, sequence=9).read_bytes()
        latest.write_bytes(plain)
        cli(*fetch).refused("a CRC-32 alone")
        latest.write_bytes(plain * 100)
        cli(*fetch).refused("more than 313 bytes")
        latest.write_bytes(b"")
        assert cli(*fetch).code == 1
        assert contents(out.parent) == before


def test_a_state_that_cannot_be_written_leaves_the_file_as_it_was(cli: Cli, ready: Path) -> None:
    """The frame of 123 bytes fits on the disk, and the state of twice as many does not."""
    basis, device = ready / "b.basis.gguf", ready / "device"
    device.mkdir()
    out, state = device / "v.bin", device / "state"
    publish = ("publish", "--to", ready / "root")
    cli(*publish, ready / "1.bin", basis).done()
    with servers.static(ready / "root") as (url, _):
        fetch = ("fetch", url, basis, "-o", out, "--key", f"{ready / 'key'}.pub", "--state", state)
        cli(*fetch).done()
        before = contents(device)
        cli(*publish, ready / "2.bin", basis).done()
        with support.limited("FSIZE", 150):
            cli(*fetch).refused("File too large")
        assert contents(device) == before
        cli(*fetch).done()
    assert out.read_bytes() == (ready / "2.bin").read_bytes()


def test_a_checksum_is_published_with_a_warning(cli: Cli, ready: Path) -> None:
    basis = ready / "b.basis.gguf"
    result = cli("publish", write_vector(ready / "w.bin", basis), basis, "--to", ready / "root")
    assert result.code == 0
    assert "proves nothing about the sender" in result.stderr
    with servers.static(ready / "root") as (url, _):
        cli("fetch", url, basis, "-o", ready / "v.bin").done()
        cli("fetch", url, basis, "-o", ready / "x.bin", "--key", f"{ready / 'key'}.pub").refused(
            "requires a tag"
        )
        os.mkfifo(ready / "pipe")
        cli("fetch", url, basis, "-o", ready / "pipe").refused("it is a pipe or a device")
    assert not (ready / "x.bin").exists()


def test_what_is_refused_before_any_request(cli: Cli, ready: Path) -> None:
    basis = ready / "b.basis.gguf"
    cli("fetch", "http://127.0.0.1:1", basis, "-o", ready / "no" / "v.bin").refused("not a directory")
    cli("fetch", "http://127.0.0.1:1", basis, "-o", "-").misused("stdout cannot take")
    same = ("-o", ready / "v.bin", "--state", ready / "root" / ".." / "v.bin")
    cli("fetch", "http://127.0.0.1:1", basis, *same).misused("--state", "name another file")
    cli("fetch", "ftp://host/v", basis, "-o", ready / "v.bin").refused("not the address of a folder")
    cli("publish", ready / "1.bin", basis, "--to", "https://example.org/").refused("where devices fetch from")
    cli("publish", ready / "1.bin", basis, "--to", ready / "root", "--user", "../up").refused("safe in")
    assert contents(ready / "root") == {}


def test_a_folder_of_many_goes_into_the_store_of_servers(cli: Cli, ready: Path) -> None:
    basis, root, store = ready / "b.basis.gguf", ready / "root", ready / "users.db"
    trusted = ("--store", store, "--key", f"{ready / 'key'}.pub")
    for user, number in (("al", 1), ("bo", 2), ("cy", 3)):
        made = ready / f"{user}.bin"
        pack = ("pack", ready / f"{number}.bin", basis, "-o", made, "--user", user)
        cli(*pack, "--key", ready / "key", "--sequence", number).done()
        cli("publish", made, basis, "--to", root, "--user", user).done()
    assert cli("publish", root, basis, *trusted, "--json").record() == {
        "store": str(store),
        "stored": 3,
        "refused": {},
    }
    newer = ("pack", ready / "al.bin", basis, "-o", ready / "newer.bin", "--user", "al")
    cli(*newer, "--key", ready / "key", "--sequence", 7).done()
    assert (
        "1 of 1 vector stored" in cli("publish", ready / "newer.bin", basis, *trusted, "--user", "al").done()
    )
    (root / cli("publish", ready / "1.bin", basis, "--to", root, "--json").record()["latest"]).unlink()
    (root / load_bases(basis).id / "cy" / "latest").write_bytes((ready / "al.bin").read_bytes())
    again = cli("publish", root, basis, *trusted, "--json").record()
    assert (again["stored"], again["refused"].keys()) == (1, {"al", "cy"})
    assert "sequence 1, but 7 was already accepted" in again["refused"]["al"]
    assert "does not verify" in again["refused"]["cy"]
    cli("publish", ready / "al.bin", basis, *trusted, "--user", "al").refused("but 7 was already accepted")
    cli("publish", ready / "al.bin", basis, "--store", store, "--user", "al").refused("no Ed25519 key")
    cli("publish", root, basis, "--store", store, "--key", ready / "evil").refused("evil")
    cli("publish", ready / "device", basis, *trusted).refused("No such file")
    (ready / "device").mkdir()
    cli("publish", ready / "device", basis, *trusted).refused("has no vectors of these factors")
    with closing(Store(store, load_bases(basis))) as opened:
        assert [(each.user, each.sequence) for each in opened.listed()] == [("al", 7), ("bo", 2), ("cy", 3)]


def test_what_publish_does_not_take(cli: Cli, ready: Path) -> None:
    publish = ("publish", ready / "root", ready / "b.basis.gguf")
    cli(*publish).misused("--to, --store")
    cli(*publish, "--to", "x", "--store", "y").misused("--to, --store")
    cli(*publish, "--to", "x", "--key", ready / "key").misused("--key")
    cli(*publish, "--store", "y", "--user", "al").misused("--user")
