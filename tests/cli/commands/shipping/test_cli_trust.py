"""A signed vector on the command line: `run`, `chat`, `eval` and `convert` check it as a device does."""

from __future__ import annotations

from pathlib import Path

import pytest
import servers
from invocation import Cli

from tinylora_edge.wire.marks import decode

ASK = ("--threads", 1, "--max-tokens", 6, "Describe the moon in one sentence.")


@pytest.fixture
def ready(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> Path:
    """A folder with keys `fleet`, `other` and `d.mac`, signed frames 1 to 3, and one with a MAC."""
    for name in ("fleet", "other"):
        cli("keygen", tmp_path / name).done()
    cli("keygen", tmp_path / "d.mac", "--mac").done()
    new = cli("vector", "new", smollm2_bundle, "-o", "-", "--random", 2, "--seed", 3).stdout_bytes
    (tmp_path / "plain.bin").write_bytes(new)
    pack = ("vector", "pack", "-", smollm2_bundle, "--dtype", "bf16")
    for number in (1, 2, 3):
        signed = ("--sign", tmp_path / "fleet", "--sequence", number)
        cli(*pack, "-o", tmp_path / f"{number}.bin", *signed, stdin=new).done()
    cli(*pack, "-o", tmp_path / "mac.bin", "--mac", tmp_path / "d.mac", stdin=new).done()
    return tmp_path


def test_run_checks_a_vector_as_a_device_does(cli: Cli, smollm2_bundle: Path, ready: Path) -> None:
    run = ("run", smollm2_bundle, *ASK)
    key = ("--key", f"{ready / 'fleet'}.pub")
    base = cli(*run).done()
    said = cli(*run, "--vector", ready / "2.bin", *key, "--state", ready / "state").done()
    assert said != base
    assert cli(*run, "--vector", ready / "mac.bin", "--mac", ready / "d.mac").done() == said
    for vector, options, *parts in (
        ("2.bin", (), "no Ed25519 key", "--key FILE"),
        ("mac.bin", (), "no HMAC key", "--mac KEY"),
        ("plain.bin", key, "requires a signature, but this is a CRC-32 frame"),
        ("mac.bin", (*key, "--mac", ready / "d.mac", "--require", "signature"), "requires a signature"),
        ("2.bin", ("--key", f"{ready / 'other'}.pub"), "does not verify under any of the 1 trusted keys"),
        ("2.bin", (*key, "--max-norm", 0.1), "norm is", "at most 0.1"),
        ("1.bin", (*key, "--state", ready / "state"), "sequence 1, but 2 was already accepted"),
        ("1.bin", ("--require", "signature"), "needs a key", "--key"),
    ):
        cli(*run, "--vector", ready / vector, *options).refused(*parts)
    other = ("--state", ready / "state", "--stream", "bob")
    cli(*run, "--vector", ready / "1.bin", *key, *other).refused("another stream than 'bob'")
    pack = ("vector", "pack", ready / "1.bin", smollm2_bundle, "-o", ready / "bob.bin", "--stream", "bob")
    cli(*pack, "--sign", ready / "fleet", "--sequence", 1).done()
    assert cli(*run, "--vector", ready / "bob.bin", *key, *other).done() == said


def test_chat_checks_what_it_exchanges(cli: Cli, smollm2_bundle: Path, ready: Path) -> None:
    chat = ("chat", smollm2_bundle, "--vector", ready / "2.bin", "--threads", 1, "--state", ready / "state")
    trusted = (*chat, "--key", f"{ready / 'fleet'}.pub")
    result = cli(*trusted, stdin=f"/vector {ready / '3.bin'}\n".encode())
    assert result.code == 0, result.stderr
    assert "sequence 3" in result.stderr
    result = cli(*trusted, stdin=b"")
    assert result.code == 1
    assert "sequence 2, but 3 was already accepted" in result.stderr
    assert {a.sequence for a in decode((ready / "state").read_bytes()).values()} == {3}


def test_fetch_and_run_share_a_state(cli: Cli, smollm2_bundle: Path, ready: Path) -> None:
    """The stream that `fetch` calls default is the one without a name of the library."""
    (ready / "root").mkdir()
    cli("publish", ready / "3.bin", smollm2_bundle, "--to", ready / "root").done()
    trusted = ("--key", f"{ready / 'fleet'}.pub", "--state", ready / "state")
    with servers.static(ready / "root") as (url, _):
        cli("fetch", url, smollm2_bundle, "-o", ready / "v.bin", *trusted, "--fresh", "ignore").done()
    ((_, _, stream),) = decode((ready / "state").read_bytes())
    assert stream == ""
    (ready / "v.bin").write_bytes((ready / "2.bin").read_bytes())
    refused = "sequence 2, but 3 was already accepted"
    cli("run", smollm2_bundle, *ASK, "--vector", ready / "v.bin", *trusted).refused(refused)
    cli("vector", "verify", ready / "v.bin", smollm2_bundle, *trusted).refused(refused)


def test_convert_takes_the_key(cli: Cli, smollm2_bundle: Path, ready: Path) -> None:
    convert = ("convert", ready / "1.bin", "--bundle", smollm2_bundle, "--to")
    cli(*convert, "gguf-lora", "-o", ready / "v.gguf").refused("no Ed25519 key", "--key FILE")
    assert not (ready / "v.gguf").exists()
    key = ("--key", f"{ready / 'fleet'}.pub")
    cli(*convert, "gguf-lora", "-o", ready / "v.gguf", *key).done()
    record = cli(*convert, "frame", "-o", ready / "w.bin", *key, "--json").record()
    assert (record["dtype"], record["exact"], record["sequence"]) == ("bf16", True, 1)
    assert len((ready / "w.bin").read_bytes()) == 37, "what is made of it has a checksum alone"


def test_eval_takes_the_key(cli: Cli, smollm2_bundle: Path, ready: Path) -> None:
    ask = ("eval", smollm2_bundle, "--task", "list-lookup", "-n", 2, "--vector", ready / "1.bin", "--json")
    cli(*ask).refused("no Ed25519 key", "--key FILE")
    assert cli(*ask, "--key", f"{ready / 'fleet'}.pub").record()["vector"]["n"] == 2
