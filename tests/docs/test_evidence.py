"""The evidence in the documents: tables and figures are what the records say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_and_figures_are_those_of_the_records() -> None:
    words = [sys.executable, "benchmarks/evidence.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
