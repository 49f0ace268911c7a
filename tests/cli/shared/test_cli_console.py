"""Output: numbers with their nouns, commands that fit, and progress that a pipe does not see."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tinylora_edge.cli.shared import console


def test_a_number_with_its_noun() -> None:
    assert console.counted(1, "prompt") == "1 prompt"
    assert console.counted(0, "prompt") == "0 prompts"
    assert console.counted(1024, "general prompt") == "1,024 general prompts"


def test_next_commands_are_copied_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    console.next_commands([(("tune", "a bundle"), "find a vector"), (("learn", "b"), "first")])
    assert capsys.readouterr().out.splitlines() == [
        "next:",
        "  tinylora-edge tune 'a bundle'  # find a vector",
        "  tinylora-edge learn b          # first",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_json_is_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, "backslashreplace"))
    value = {"name": "Zoë 😀", "path": "not in UTF-8: \udcff"}
    console.print_json(value)
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert json.loads(text) == value
    assert ("Zoë 😀" in text) is (encoding == "utf-8")


def test_what_is_being_done_is_not_said_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with console.working("loading") as now:
        now("answering")
    assert capsys.readouterr() == ("", "")


def test_what_is_being_done_is_shown_on_a_terminal_and_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with console.working("loading") as now:
        now("answering")
    out, shown = capsys.readouterr()
    assert out == ""
    assert "answering" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the line is taken away
