"""The benchmarks load. `make bench` runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
LOAD = """
import importlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    importlib.import_module(path.stem)
"""


def test_every_benchmark_loads() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
