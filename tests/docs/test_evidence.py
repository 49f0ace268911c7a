"""The evidence in the documents: tables and figures are what the records say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def evidence(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "benchmarks/evidence.py", *options]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The documents, and what makes them."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/results").symlink_to(ROOT / "benchmarks/results")
    for name in ("evidence", "_common", "_figures", "_records", "_tables"):
        shutil.copy(ROOT / f"benchmarks/{name}.py", tmp_path / "benchmarks")
    shutil.copytree(ROOT / "docs/figures", tmp_path / "docs/figures")
    shutil.copy(ROOT / "docs/EVIDENCE.md", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_tables_and_figures_are_those_of_the_records() -> None:
    done = evidence(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_older_than_the_records_is_noticed_and_made_again(copy: Path) -> None:
    page, figure, gone = (
        copy / "docs/EVIDENCE.md",
        copy / "docs/figures/frontier.svg",
        copy / "docs/figures/evidence.svg",
    )
    text, drawn = page.read_text("utf-8"), figure.read_text("utf-8")
    page.write_text(text.replace("| guarded brevity |", "| guarded  brevity |", 1), "utf-8")
    figure.write_text(drawn.replace("SHA-256 ", "SHA-256 0", 1), "utf-8")
    gone.unlink()
    done = evidence(copy, "--check")
    assert done.returncode == 1
    assert done.stderr.startswith("older than the records: EVIDENCE.md, evidence.svg, frontier.svg;")
    assert evidence(copy).returncode == 0
    assert evidence(copy, "--check").returncode == 0
    assert page.read_text("utf-8") == text
