"""Help pages: nothing is cut off at any width, and in a pipe they are plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from invocation import Cli, on_a_terminal

from tinylora_edge.cli import app
from tinylora_edge.cli.shared import shell

_CODE = re.compile(r"\x1b\[[0-9;]*m")


def _pages(cli: Cli) -> dict[str, str]:
    names = [entry.name for section in app.COMMANDS for entry in section.entries]
    return {name: cli(*name.split(), "--help").done() for name in ("", *names, "vector new", "trust add")}


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_nothing_is_cut_off(cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    whole = {name: text.split() for name, text in _pages(cli).items()}
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, text in _pages(cli).items():
        assert text.split() == whole[name], name  # the same words, in other lines
        assert "…" not in text
        for line in text.splitlines():
            command = line.startswith(("    tinylora-edge", "    curl"))  # one to copy
            assert len(line) <= min(columns, 100) or command or len(line.split()) == 1, (name, line)


def test_a_terminal_has_colours_and_commands_that_fit(environment: dict[str, str]) -> None:
    text = on_a_terminal(environment, 60, "run", "--help")
    assert "\x1b[1mUsage:\x1b[0m" in text
    plain = _CODE.sub("", text)
    assert all(len(line) <= 60 for line in plain.splitlines())
    broken = (
        '    tinylora-edge run out/demo --vector vector.bin \\\n      "Describe the moon in one sentence."'
    )
    assert broken in plain  # a shell takes it as it stands


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_there_are_to_be_none(environment: dict[str, str], more: dict[str, str]) -> None:
    assert "\x1b" not in on_a_terminal(environment | more, 80, "--help")


def test_usage_errors_in_a_pipe_are_plain(process: Callable[..., Any]) -> None:
    for words in (["run"], ["nonsense"], ["vector", "new", "--nonsense"], []):
        text = process(*words).stderr
        assert text.startswith("Usage: tinylora-edge")
        assert "\x1b" not in text
        assert not set(text) & set("│╭╰─")


def test_usage_errors_on_a_narrow_terminal_are_broken_between_words(environment: dict[str, str]) -> None:
    for words in (["evl"], ["vector", "new", "x", "-o", "y", "--zeros", "--random", "1"]):
        lines = on_a_terminal(environment, 40, *words).splitlines()
        assert lines[0].startswith("Usage: tinylora-edge")
        assert any(line.startswith("Error: ") for line in lines)
        assert all(len(line) <= 40 for line in lines if not line.startswith("Try "))


def test_a_command_that_was_broken_is_one_command() -> None:
    command = "tinylora-edge run b --system \"a b c\" --vector v.bin 'what is it?'"
    lines = shell.broken(command, 30)
    assert max(map(len, lines)) <= 30
    assert "  --vector v.bin \\" in lines  # an option stays with its value
    assert re.sub(r" \\\n +", " ", "\n".join(lines)) == command
    assert shell.broken(command, None) == [command]
