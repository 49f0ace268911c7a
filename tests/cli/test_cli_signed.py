"""`export --sign`, `sign`, `inspect --key`, `run --bundle-key`: a bundle from its maker to a device."""

from __future__ import annotations

import shutil
from pathlib import Path

import models
import pytest
from invocation import Cli, contents, in_process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a key pair, another one, and a bundle that was exported and signed."""
    cli, folder = in_process(), tmp_path_factory.mktemp("signed")
    models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf")
    for name in ("key", "other"):
        cli("keygen", folder / name).done()
    export = ("export", folder / "tiny.gguf", "-o", folder / "bundle", "--groups", 5)
    record = cli(*export, "--key", folder / "key", "--json").record()
    assert record["signature"]["files"] == 3
    assert record["signature"]["signature"] == str(folder / "bundle" / "signature.json")
    return folder


@pytest.fixture
def ready(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def test_an_inspection(cli: Cli, ready: Path) -> None:
    bundle, key = ready / "bundle", ("--key", f"{ready / 'key'}.pub")
    assert "(3 files verified)" in cli("inspect", bundle, *key).done()
    assert "(not checked: --key FILE)" in cli("inspect", bundle).done()
    assert cli("inspect", bundle, "--json").record()["signature"]["verified"] is False
    cli("inspect", bundle, "--key", f"{ready / 'other'}.pub").refused("does not verify under")
    cli("inspect", bundle / "basis.gguf", *key).misused("a basis alone is not signed")
    (bundle / "manifest.json").write_bytes(b"{}")
    cli("inspect", bundle, *key).refused("manifest.json has SHA-256")
    (bundle / "signature.json").unlink()
    cli("inspect", bundle, *key).refused("the bundle is not signed")
    assert cli("inspect", bundle, "--json").record()["signature"] is None


def test_a_bundle_is_signed_again(cli: Cli, ready: Path) -> None:
    bundle, key = ready / "bundle", ("--key", f"{ready / 'key'}.pub")
    cli("export", bundle, "--add-base", ready / "tiny.gguf").done()
    cli("inspect", bundle, *key).done()
    add = ("export", bundle, "--add-base", models.quantize_file(ready / "tiny.gguf", ready / "q8.gguf", 7))
    assert cli(*add).stderr.startswith("warning: the signature of")
    cli("inspect", bundle, *key).refused("basis.gguf has SHA-256")
    assert cli(*add, "--key", ready / "key", "--json").record()["signature"]["files"] == 3
    cli("inspect", bundle, *key).done()
    assert "signed 3 files under ed25519:" in cli("sign", bundle, "--key", ready / "key").done()
    cli("inspect", bundle, *key).done()


def test_a_key_that_is_none_is_told_before_the_work(cli: Cli, ready: Path) -> None:
    before = contents(ready)
    export = ("export", ready / "tiny.gguf", "-o", ready / "new")
    cli(*export, "--key", f"{ready / 'key'}.pub").refused("holds a PUBLIC KEY")
    cli("sign", ready / "tiny.gguf", "--key", ready / "key").refused("does not exist")
    q8 = models.quantize_file(ready / "tiny.gguf", ready / "q8.gguf", 7)
    add = ("export", ready / "bundle", "--add-base", q8)
    cli(*add, "--key", f"{ready / 'key'}.pub").refused("holds a PUBLIC KEY")
    q8.unlink()
    assert contents(ready) == before


def test_a_device_runs_what_was_signed(cli: Cli, smollm2_bundle: Path, ready: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(smollm2_bundle, tmp_path / "smollm2")
    cli("sign", bundle, "--key", ready / "key").done()
    run = ("run", bundle, "--threads", 1, "--max-tokens", 2, "--state", tmp_path / "state", "The moon")
    assert cli(*run, "--bundle-key", f"{ready / 'key'}.pub").done()
    cli(*run, "--bundle-key", f"{ready / 'other'}.pub").refused("does not verify under")
