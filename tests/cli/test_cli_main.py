"""The command as a whole: help, usage, missing packages, errors with and without --debug, pipes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli import app

COMMANDS = [name for section in app.COMMANDS.values() for name in section]


def test_help_lists_the_commands_in_sections(cli: Cli) -> None:
    lines = cli("--help").done().splitlines()
    for title, section in app.COMMANDS.items():
        at = lines.index(f"{title}:")
        assert lines[at + 1].split()[0] == next(iter(section))
    assert len(COMMANDS) == len(set(COMMANDS)) == 18


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_parses(cli: Cli, command: str) -> None:
    lines = cli(command, "--help").done().splitlines()
    (begin,) = [number for number, line in enumerate(lines) if line in ("  Example:", "  Examples:")]
    end = lines.index("", begin)
    examples = [line for line in lines[begin + 1 : end] if line.strip().startswith("tinylora-edge ")]
    for example in examples:
        words = shlex.split(example, comments=True)[1:]
        assert words[0] == command
        # --help at the end is eager only once everything before it has been parsed as far as it goes: an
        # unknown option, or one without its value, is an error.
        assert cli(*words, "--help").code == 0
        assert cli(*words, "--no-such-option").code == 2
    assert examples


def test_the_reference_has_each_command_in_its_section() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text("utf-8")
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    for title, section in app.COMMANDS.items():
        assert re.findall(r"^\| `([a-z]+)", sections[title], re.M) == list(section)


@pytest.mark.parametrize(
    "words", [["nonsense"], ["eval", "bundle"], ["run", "bundle"], ["inspect", "--nonsense", "x"]]
)
def test_wrong_usage(cli: Cli, words: list[str]) -> None:
    cli(*words).misused()


def test_debug_shows_the_traceback_and_the_same_line(cli: Cli, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    plain = cli("inspect", missing)
    plain.refused(str(missing))
    debug = cli("--debug", "inspect", missing)
    assert debug.code == 1
    assert re.match("(?s)Traceback .*FileNotFoundError", debug.stderr)
    assert debug.stderr.endswith(plain.stderr)


@pytest.mark.parametrize("words", [["inspect"], ["--version"], ["--help"]])
def test_a_stdout_that_takes_nothing(process: Cli, small: Path, words: list[str]) -> None:
    """A closed pipe ends the command quietly, a full device is an error."""
    reader, closed = os.pipe()
    os.close(reader)
    with open(closed, "wb") as pipe, open("/dev/full", "wb") as full:
        for stdout, code, stderr in ((pipe, 141, ""), (full, 1, "error: No space left on device\n")):
            result = process(*words, small, capture_output=False, stdout=stdout, stderr=subprocess.PIPE)
            assert (result.code, result.stderr) == (code, stderr)


def test_a_report_for_no_columns(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert "sequence" in cli("inspect", trained).done()


def test_help_needs_no_engine_and_no_exporter(environment: dict[str, str]) -> None:
    code = (
        "import sys; from tinylora_edge.cli import app; "
        "print([m for m in ('llama_cpp', 'torch', 'transformers', 'onnx', 'tinylora_edge.exporters', "
        "'tinylora_edge.runtime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"[]\n"
