"""`keygen` and `sign`; `inspect --key`, `run --bundle-key`, `serve`: a bundle from its maker to a device."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import models
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from invocation import Cli, contents, in_process

from tinylora_edge import Ed25519Signer


def test_a_pair(cli: Cli, tmp_path: Path) -> None:
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


def test_a_mac(cli: Cli, tmp_path: Path) -> None:
    printed = cli("keygen", tmp_path / "d.mac", "--mac").done()
    text = (tmp_path / "d.mac").read_text()
    assert len(bytes.fromhex(text)) == 32
    assert text.strip() not in printed
    assert stat.S_IMODE((tmp_path / "d.mac").stat().st_mode) == 0o600
    assert set(contents(tmp_path)) == {"d.mac"}
    cli("keygen", "-", "--mac").misused("stdout cannot take")


@pytest.mark.parametrize("there", ["a.key", "a.key.pub"])
def test_a_key_is_never_lost_by_accident(cli: Cli, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    cli("keygen", tmp_path / "a.key").refused(there, "exists already")
    cli("keygen", tmp_path / "no" / "a.key").refused(str(tmp_path / "no"))
    assert contents(tmp_path) == {there: b"precious"}


@pytest.fixture(scope="module")
def made(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cli, folder = in_process(), tmp_path_factory.mktemp("signed")
    for name in ("key", "other"):
        cli("keygen", folder / name).done()
    cli("export", tiny_gguf, "-o", folder / "bundle").done()
    record = cli("sign", folder / "bundle", "--key", folder / "key", "--json").record()
    assert (record["files"], record["signature"]) == (3, str(folder / "bundle" / "signature.json"))
    return folder


@pytest.fixture
def ready(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def test_a_bundle_is_inspected_and_run(cli: Cli, ready: Path) -> None:
    bundle, key = ready / "bundle", ("--key", f"{ready / 'key'}.pub")
    assert "verified True, files 3" in cli("inspect", bundle, *key).done()
    assert "verified False" in cli("inspect", bundle).done()
    cli("inspect", bundle, "--key", f"{ready / 'other'}.pub").refused("does not verify under")
    cli("inspect", bundle / "basis.gguf", *key).misused("a basis alone has no signature")
    run = ("run", bundle, "--threads", 1, "--max-tokens", 2, "--state", ready / "state", "The moon")
    assert cli(*run, "--bundle-key", f"{ready / 'key'}.pub").done()
    for command in (run, ("serve", bundle)):
        cli(*command, "--bundle-key", f"{ready / 'other'}.pub").refused("does not verify under")
    (bundle / "signature.json").unlink()
    assert cli("inspect", bundle, "--json").record()["signature"] is None


def test_a_bundle_that_was_changed_is_signed_again(cli: Cli, ready: Path, tiny_gguf: Path) -> None:
    bundle, key = ready / "bundle", ("--key", f"{ready / 'key'}.pub")
    add = ("export", bundle, "--add-base", models.quantize_file(tiny_gguf, ready / "q8.gguf", 7))
    basis = (bundle / "basis.gguf").read_bytes()
    cli(*add).refused("the bundle is signed by ed25519:")
    cli(*add, "--key", ready / "other").refused("does not verify under")
    assert (bundle / "basis.gguf").read_bytes() == basis
    cli(*add, "--key", ready / "key").done()
    assert (bundle / "basis.gguf").read_bytes() != basis
    cli("inspect", bundle, *key).done()
    (bundle / "manifest.json").write_bytes(b"{}")
    assert "signed 3 files under ed25519:" in cli("sign", bundle, "--key", ready / "key").done()
    cli("inspect", bundle, *key).done()
    cli("sign", bundle, "--key", f"{ready / 'key'}.pub").refused("found PUBLIC KEY")
    cli("sign", tiny_gguf, "--key", ready / "key").refused("does not exist")
