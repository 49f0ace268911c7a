"""Completion in a shell: names of commands, tasks and models, and nothing heavy is imported for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from invocation import COMMAND, Cli

from tinylora_edge.cli import app
from tinylora_edge.cli.shared import completion
from tinylora_edge.tasks import BUILTIN

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(environment: dict[str, str], tmp_path: Path) -> Complete:
    """Return what a shell offers behind the cursor at the end of a line, asked as bash asks."""

    def ask(line: str) -> list[str]:
        words = len(line.split()) - (not line.endswith(" "))
        asked = {"_TINYLORA_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(words)}
        done = subprocess.run(
            [COMMAND], env=environment | asked, cwd=tmp_path, capture_output=True, check=True
        )
        assert done.stderr == b""
        return done.stdout.decode().split()

    return ask


def test_commands_are_completed(complete: Complete) -> None:
    names = [entry.name for section in app.COMMANDS for entry in section.entries]
    assert complete("tinylora-edge ") == names
    assert complete("tinylora-edge vector ver") == ["verify"]


def test_tasks_models_and_choices_are_completed(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "brief.jsonl").touch()
    assert complete("tinylora-edge eval smollm2 --task br") == ["brevity", "brief.jsonl"]
    assert "qwen2.5-7b" in complete("tinylora-edge export qwen2.5-")
    assert complete("tinylora-edge run smollm2 --require c") == ["checksum"]


def test_files_are_left_to_the_shell(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "vector.bin").touch()
    assert complete("tinylora-edge run smollm2 --vector ve") == []


def test_every_task_is_offered_with_what_it_asks_for() -> None:
    assert [name for name, _ in completion.tasks("")] == list(BUILTIN)
    assert all(text for _, text in completion.tasks(""))


def test_a_broken_catalog_does_not_disturb_who_types(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[[[")
    monkeypatch.setenv("TINYLORA_EDGE_CATALOG", str(tmp_path / "bad.toml"))
    assert completion.models("qwen") == []


def test_nothing_heavy_is_imported(environment: dict[str, str]) -> None:
    asked = {"_TINYLORA_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": "tinylora-edge r", "COMP_CWORD": "1"}
    done = subprocess.run(
        [COMMAND], env=environment | asked | {"PYTHONPROFILEIMPORTTIME": "1"}, capture_output=True, check=True
    )
    assert done.stdout == b"run\n"
    for module in (b"tinylora_edge.cli.commands", b"tinylora_edge.runtime", b"llama_cpp", b"rich.progress"):
        assert module not in done.stderr


def test_a_home_that_cannot_be_written_has_a_way(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{COMMAND} --install-completion bash"],
        env=environment | {"HOME": "/proc", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: /proc/")
    assert "--show-completion" in done.stderr
    assert done.stderr.count("\n") == 1


def test_bash_loads_the_script_and_completes(cli: Cli, environment: dict[str, str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not here")
    script = subprocess.run(
        [COMMAND, "--show-completion", "bash"],
        env=environment | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    ask = "COMP_WORDS=(tinylora-edge ins); COMP_CWORD=1; _tinylora_edge_completion tinylora-edge"
    path = f"{COMMAND.parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}; echo $COMPREPLY"],
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "inspect\n", done.stderr
