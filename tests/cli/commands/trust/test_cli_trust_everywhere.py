"""`--trust` on every command that takes a key: the option, and what it does there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from invocation import Cli, in_process
from typer.main import get_command

from tinylora_edge.cli.app import app

DAY = ("--day", "2026-03-01")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model, vectors of two signers, and a trust file that lists one of them."""
    cli, folder, here = in_process(), tmp_path_factory.mktemp("everywhere"), Path.cwd()
    os.chdir(folder)
    models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf")
    cli("export", "tiny.gguf", "-o", "demo", "--groups", 5).done()
    for name in ("root", "fleet", "spare", "release"):
        cli("keygen", name).done()
    cli("keygen", "device.mac", "--mac").done()
    new = cli("vector", "new", "demo", "-o", "-", "--random", 0.3).stdout_bytes
    for name in ("fleet", "spare"):
        cli("vector", "pack", "-", "demo", "-o", f"{name}.bin", "--sign", name, stdin=new).done()
    cli("trust", "init", "t.json", "--root", "root", *DAY).done()
    cli("trust", "add", "t.json", "fleet.pub", "--root", "root", *DAY).done()
    rows = [{"prompt": f"prompt {i}"} for i in range(40)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.chdir(here)
    return folder


@pytest.fixture
def ready(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test runs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for each, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {each}".strip())
        else:
            yield f"{name} {each}".strip(), command


def test_every_command_that_trusts_a_key_takes_a_trust_file() -> None:
    with_key = {}
    for name, command in _commands(get_command(app)):
        options = {option for parameter in command.params for option in parameter.opts}
        if any(one.name == "keys" and "--key" in one.opts for one in command.params):
            with_key[name] = "--trust" in options
    assert [name for name, has in with_key.items() if not has] == []
    assert {"eval", "tune", "convert", "run", "serve", "fetch", "vector verify"} <= with_key.keys()


TASK = ("--task", "task.jsonl", "--reward", "regex('[a-z]')")
QUICK = ("--budget", "2ktokens", "--no-evaluate", "--threads", 1, "--sequences", 4, "--max-tokens", 2)
USES = {
    "vector inspect": lambda frame: ("vector", "inspect", frame, "demo"),
    "inspect": lambda frame: ("inspect", frame, "--basis", "demo"),
    "average": lambda frame: ("vector", "average", frame, "--bundle", "demo", "-o", "mean.bin"),
    "receipt": lambda frame: ("vector", "receipt", frame, "demo", "--mac", "device.mac", "-o", "r.bin"),
    "convert": lambda frame: ("convert", frame, "--bundle", "demo", "--to", "onnx-adapter", "-o", "v.onnx"),
    "eval": lambda frame: ("eval", "demo", "--vector", frame, *TASK, "-n", 2, "--max-tokens", 2),
    "tune": lambda frame: ("tune", "demo", "--start", frame, *TASK, *QUICK, "-o", "tuned.bin"),
}


@pytest.mark.parametrize("use", USES)
def test_a_listed_key_counts_and_no_other(cli: Cli, ready: Path, use: str) -> None:
    cli(*USES[use]("spare.bin"), "--trust", "t.json").refused("does not verify under any of the 1 trusted")
    cli(*USES[use]("fleet.bin")).refused("no Ed25519 key to check it")
    assert cli(*USES[use]("fleet.bin"), "--trust", "t.json").code == 0


class TestBundles:
    @pytest.fixture
    def listed(self, cli: Cli, ready: Path) -> Path:
        """The same, with a key of bundles on the list."""
        add = ("trust", "add", "t.json", "release.pub", "--root", "root", "--bundles", *DAY)
        record = cli(*add, "--json").record()
        assert (record["keys"][1]["streams"], record["keys"][1]["bundles"]) == ([], True)
        assert "bundles; any day" in cli("trust", "show", "t.json").done()
        return ready

    RUN = ("run", "demo", "abc", "--max-tokens", 1, "--threads", 1, "--n-ctx", 256, "--trust", "t.json")

    @pytest.mark.parametrize(
        "command",
        [
            ("eval", "demo", *TASK, "-n", 2),
            ("tune", "demo", *TASK, *QUICK, "-o", "tuned.bin"),
            ("serve", "demo", "--port", 0),
            ("inspect", "demo"),
            RUN[:-2],
        ],
    )
    def test_what_nobody_signed_is_refused(self, cli: Cli, listed: Path, command: tuple[object, ...]) -> None:
        cli(*command, "--trust", "t.json").refused("the bundle is not signed")

    def test_who_may_sign(self, cli: Cli, listed: Path) -> None:
        cli("sign", "demo", "--sign", "fleet").done()
        cli(*self.RUN).refused("which does not count: it signs no bundles")
        cli("sign", "demo", "--sign", "spare").done()
        cli(*self.RUN).refused("does not verify under ed25519:")
        cli("sign", "demo", "--sign", "release").done()
        cli(*self.RUN).done()
        assert "(3 files verified)" in cli("inspect", "demo", "--trust", "t.json").done()
        cli("eval", "demo", *TASK, "-n", 2, "--max-tokens", 2, "--trust", "t.json").done()
        cli("trust", "revoke", "t.json", "release.pub", "--root", "root", *DAY).done()
        cli(*self.RUN).refused("no key counts that may sign bundles", "was revoked on 2026-03-01")

    def test_no_way_back_to_an_older_one(self, cli: Cli, listed: Path) -> None:
        run, sign = (*self.RUN, "--state", "device.state"), ("sign", "demo", "--sign", "release")
        assert " of phone 1 under " in cli(*sign, "--name", "phone", "--sequence", 1).done()
        older = (listed / "demo" / "signature.json").read_bytes()
        cli(*run).done()
        cli(*sign, "--name", "phone", "--sequence", 2).done()
        assert "verified, phone 2)" in cli("inspect", "demo", "--trust", "t.json").done()
        cli(*run).done()
        (listed / "demo" / "signature.json").write_bytes(older)
        cli(*run).refused("has sequence 1, but 2 was already loaded of 'phone'")
        cli(*sign, "--name", "phone").done()
        cli(*run).refused("has no sequence, but 2 was already loaded")
