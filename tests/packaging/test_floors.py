"""`make floors`: the lowest versions that a project allows, as constraints for pip."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import support
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def floors() -> ModuleType:
    return support.script(ROOT / ".ci" / "floors.py")


def test_of_the_extras_that_are_named(floors: ModuleType) -> None:
    made = {
        "name": "it",
        "dependencies": ["a>=1.9"],
        "optional-dependencies": {
            "one": ["it[two,three]", "b[x]>=2,<3"],
            "two": ["a>=1.10", "c", "it[one]"],
            "three": ["torch>=2.6", "d==0.3.36"],
            "four": ["e>=1"],
        },
    }
    assert floors.floors(made, ["one"]) == {"a": "1.10", "b": "2", "d": "0.3.36"}
    assert floors.floors(made, ["four"]) == {"a": "1.9", "e": "1"}
    with pytest.raises(ValueError, match="no requirement that is known here"):
        floors.floors(made | {"dependencies": ["@"]}, [])


def test_every_floor_is_one_that_is_allowed(floors: ModuleType) -> None:
    """Each is what some requirement names as its lowest version, by another parser than this one."""
    for extra in PROJECT["optional-dependencies"]:
        found = floors.floors(PROJECT, [extra])
        assert {"numpy", "gguf"} <= set(found)
        for one in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if one.name in found:
                assert Version(found[one.name]) >= min(Version(each.version) for each in one.specifier)
                assert one.specifier.contains(found[one.name])
