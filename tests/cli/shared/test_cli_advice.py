"""What the command line adds to errors: options of the command that ran, or a command that has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import support
from invocation import Cli

from tinylora_edge import save_basis

KEYS = ("--key FILE", "--mac KEY")


@pytest.fixture
def ready(cli: Cli, tmp_path: Path) -> Path:
    """A folder with a basis, a frame signed under `key`, and one with a MAC."""
    basis = tmp_path / "b.basis.gguf"
    save_basis(support.random_basis(blocks=5, groups=13), basis)
    cli("keygen", tmp_path / "key").done()
    new = cli("vector", "new", basis, "-o", "-", "--random", 0.3).stdout_bytes
    for name, option in (("signed.bin", ("--sign", tmp_path / "key")), ("mac.bin", ("--mac", "5e" * 16))):
        cli("vector", "pack", "-", basis, "-o", tmp_path / name, *option, stdin=new).done()
    return tmp_path


@pytest.mark.parametrize(("frame", "option"), [("signed.bin", KEYS[0]), ("mac.bin", KEYS[1])])
def test_a_lacking_key_is_answered_with_the_option(cli: Cli, ready: Path, frame: str, option: str) -> None:
    basis, vector = ready / "b.basis.gguf", ready / frame
    for command in (
        ("vector", "verify", vector, basis),
        ("vector", "inspect", vector, basis),
        ("inspect", vector, "--basis", basis),
        ("vector", "average", vector, "--bundle", basis, "-o", ready / "out"),
        ("convert", vector, "--bundle", basis, "--to", "frame", "-o", ready / "out"),
    ):
        result = cli(*command)
        result.refused(f"; on the command line: {option}\n")
        assert len(re.findall("--", result.stderr)) == 1, "the library names no option of its own"


def test_a_command_without_the_option_names_one_that_has_it(cli: Cli, ready: Path) -> None:
    pack = ("vector", "pack", ready / "signed.bin", ready / "b.basis.gguf", "-o", ready / "out")
    cli(*pack).refused("; on the command line: tinylora-edge vector verify FILE BUNDLE --key FILE\n")


def test_what_is_required_without_a_key(cli: Cli, ready: Path) -> None:
    verify = ("vector", "verify", ready / "signed.bin", ready / "b.basis.gguf", "--require")
    cli(*verify, "signature").refused("needs a key", "; on the command line: --key FILE\n")
    cli(*verify, "mac").refused("needs a key", "; on the command line: --mac KEY\n")


def test_an_error_in_a_chat_is_answered_too(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    cli("keygen", tmp_path / "key").done()
    cli("vector", "new", tiny_bundle, "-o", tmp_path / "v.bin", "--random", 0.3).done()
    cli(
        "vector",
        "pack",
        tmp_path / "v.bin",
        tiny_bundle,
        "-o",
        tmp_path / "s.bin",
        "--sign",
        tmp_path / "key",
    )
    result = cli("chat", tiny_bundle, "--threads", 1, stdin=f"/vector {tmp_path / 's.bin'}\n".encode())
    assert result.code == 1
    assert "; on the command line: --key FILE" in result.stderr


def test_a_sequence_that_is_taken(cli: Cli, ready: Path) -> None:
    basis, key = ready / "b.basis.gguf", ready / "key"
    for number in (2, 1):
        frame = ready / f"{number}.bin"
        cli("vector", "new", basis, "-o", frame, "--random", 0.3, "--sequence", number).done()
        cli("vector", "pack", frame, basis, "-o", frame, "--sign", key, "--force").done()
    (ready / "root").mkdir()
    cli("publish", ready / "2.bin", basis, "--to", ready / "root").done()
    pack = "tinylora-edge vector pack FILE BUNDLE -o OUTPUT --sequence N"
    cli("publish", ready / "1.bin", basis, "--to", ready / "root").refused("sequence=3 or higher", pack)


def test_a_task_without_a_reward(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text("".join(f'{{"prompt": "prompt {i}"}}\n' for i in range(40)))
    result = cli("eval", tiny_bundle, "--task", task)
    result.refused("(reward=...); on the command line: --reward SPEC\n")
