"""The public surface: names and errors."""

from __future__ import annotations

import inspect
import tomllib
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import tinylora_edge
from tinylora_edge import TinyLoraError, errors, runtime

ROOT = Path(__file__).parents[2]


def test_faces_list_what_they_have():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    for face in (name for name in packages if hasattr(import_module(name), "__all__")):
        module = import_module(face)
        assert [name for name in module.__all__ if not hasattr(module, name)] == [], face
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type | FunctionType | ModuleType):
                assert inspect.getdoc(value), f"{face}.{name} says nothing about itself"


def test_every_error_is_exported():
    classes = {name: each for name, each in vars(errors).items() if inspect.isclass(each)}
    found = {name for name, each in classes.items() if issubclass(each, TinyLoraError)}
    assert found <= set(tinylora_edge.__all__)


def test_parameters_that_the_design_promises():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    assert parameters(runtime.load)[:3] == ["base", "vector_bytes", "policy"]
    assert inspect.signature(runtime.load).parameters["policy"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters(tinylora_edge.load_bundle) == ["path"]
    assert parameters(tinylora_edge.Projection.entries) == ["modules", "rank", "rows"]
    assert parameters(tinylora_edge.Projection.random) == ["modules", "groups", "rank"]
    assert parameters(tinylora_edge.MicroVector.from_bytes) == ["data", "basis", "policy"]
    fields = tinylora_edge.MicroVector.__dataclass_fields__
    assert list(fields) == ["values", "dtype", "sequence", "basis", "under", "entries"]
