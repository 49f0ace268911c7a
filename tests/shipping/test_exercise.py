"""The tabletop exercise of docs/SECURITY.md, step by step as the page has it."""

from __future__ import annotations

import re
import shlex
import shutil
from datetime import date, datetime, tzinfo
from pathlib import Path
from typing import Self

import pytest
import servers
import support
from invocation import Cli

from tinylora_edge import save_basis
from tinylora_edge.shipping import layout
from tinylora_edge.wire import expiry

PAGE = (Path(__file__).parents[2] / "docs" / "SECURITY.md").read_text("utf-8")
SECTION = PAGE.partition("\n## The day a key leaks\n")[2].partition("\n## ")[0]
STEPS = re.split(r"^\*\*(\d{4}-\d\d-\d\d)\.\*\* ", SECTION, flags=re.M)[1:]
MIRROR = "https://mirror.example"


def copy(words: list[str]) -> None:
    """`cp`, as the page has it: a file, or what is in a folder."""
    *options, source, target = words
    if options == ["-r"]:
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        assert options == []
        shutil.copy(source, target)


def test_the_exercise_of_a_leaked_key(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    basis = support.random_basis(blocks=5, groups=13)
    save_basis(basis, tmp_path / "b.basis.gguf")
    cli("vector", "new", "b.basis.gguf", "-o", "trained.bin", "--random", 0.3).done()
    for name in ("origin", "mirror"):
        Path(name).mkdir()
    now = [date(2026, 1, 1)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(now[0].year, now[0].month, now[0].day, tzinfo=tz)

    monkeypatch.setattr(expiry, "datetime", Clock)
    answered = {"says": 0, "refused": 0}
    with servers.static(tmp_path / "mirror") as (url, _):
        names = {"BUNDLE": "b.basis.gguf", "LATEST": layout.latest(basis.id, "default"), MIRROR: url}
        for day, text in zip(STEPS[::2], STEPS[1::2], strict=True):
            assert date.fromisoformat(day) >= now[0]
            now[0] = date.fromisoformat(day)
            for line in re.findall(r"^    (\S.*)$", text, re.M):
                line, _, answer = line.partition("      # ")
                kind, _, expected = answer.partition(": ")
                for name, value in names.items():
                    line = line.replace(name, value)
                program, *words = shlex.split(line)
                if program == "cp":
                    copy(words)
                    continue
                assert program == "tinylora-edge"
                outcome = cli(*words)
                if kind == "refused":
                    outcome.refused(expected)
                else:
                    assert expected in outcome.done(), line
                answered[kind or "says"] += bool(expected)
    assert len(STEPS) == 2 * 10
    assert answered == {"says": 5, "refused": 8}
