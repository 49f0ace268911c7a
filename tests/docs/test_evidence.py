"""The evidence in the documents: tables and figure are what the records say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECK = [sys.executable, "benchmarks/evidence.py", "--check"]


def test_tables_and_figure_are_those_of_the_records() -> None:
    done = subprocess.run(CHECK, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_document_that_is_older_than_the_records_is_noticed(tmp_path: Path) -> None:
    for folder in ("benchmarks", "docs"):
        (tmp_path / folder).mkdir()
    for path in ("benchmarks/results", "docs/figures"):
        (tmp_path / path).symlink_to(ROOT / path)
    for name in ("evidence", "_common", "_bars"):
        (tmp_path / f"benchmarks/{name}.py").write_bytes((ROOT / f"benchmarks/{name}.py").read_bytes())
    text = (ROOT / "docs/EVIDENCE.md").read_text("utf-8")
    (tmp_path / "docs/LEARNED_BASIS.md").symlink_to(ROOT / "docs/LEARNED_BASIS.md")
    page = tmp_path / "docs/EVIDENCE.md"
    page.write_text(text.replace("| guarded brevity |", "| guarded  brevity |", 1), "utf-8")
    done = subprocess.run(CHECK, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EVIDENCE.md" in done.stderr
    assert "evidence.svg" not in done.stderr
    assert "LEARNED_BASIS.md" not in done.stderr


def test_records_keep_what_they_were_made_with() -> None:
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/prompts.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["commit"]
        assert row["versions"]["llama-cpp-python"]
        assert row["search"]["answers"] > {"thorough": 1000, "quick": 100}[row["search"]["kind"]]
