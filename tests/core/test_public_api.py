"""The public surface: names and errors."""

from __future__ import annotations

import inspect
import tomllib
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import tinylora_edge
from tinylora_edge import MissingExtraError, TinyLoraError, errors

ROOT = Path(__file__).parents[2]


def tree() -> dict[str, type[TinyLoraError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, TinyLoraError)
    }


def faces() -> list[str]:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    return [name for name in packages if hasattr(import_module(name), "__all__")]


def test_faces_list_what_they_have():
    for face in faces():
        module = import_module(face)
        assert [name for name in module.__all__ if not hasattr(module, name)] == [], face
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type | FunctionType | ModuleType):
                assert inspect.getdoc(value), f"{face}.{name} says nothing about itself"


class TestNames:
    def test_every_error_is_exported(self):
        assert set(tree()) <= set(tinylora_edge.__all__)

    def test_names_that_the_design_promises(self):
        from tinylora_edge import factorization, projection, runtime

        assert list(inspect.signature(projection.project).parameters) == ["seed", "module", "u", "rank"]
        assert list(inspect.signature(factorization.truncated_svd).parameters)[:2] == ["weight", "rank"]
        load = inspect.signature(runtime.load).parameters
        assert list(load)[:3] == ["base", "vector_bytes", "policy"]
        assert load["vector_bytes"].default is None
        assert load["policy"].kind is inspect.Parameter.KEYWORD_ONLY
        assert list(inspect.signature(tinylora_edge.load_bundle).parameters) == ["path"]
        promised = {
            tinylora_edge.Factors: ("architecture", "modules", "rank", "a", "b", "digest", "leading"),
            tinylora_edge.Basis: ("factors", "projection", "size", "digest", "id", "R", "delta"),
            tinylora_edge.Bundle: ("factors", "bases", "basis", "check_base"),
        }
        for kind, names in promised.items():
            assert [n for n in names if n not in kind.__dataclass_fields__ and not hasattr(kind, n)] == []
        random = inspect.signature(tinylora_edge.Projection.random).parameters
        assert list(random) == ["modules", "groups", "rank"]
        assert [random[name].default for name in list(random)[1:]] == [13, 2]
        assert list(inspect.signature(tinylora_edge.Projection.entries).parameters) == ["modules", "rank"]
        assert list(tinylora_edge.MicroVector.__dataclass_fields__) == [
            "values",
            "dtype",
            "sequence",
            "basis",
        ]
        assert list(inspect.signature(tinylora_edge.MicroVector.from_bytes).parameters) == [
            "data",
            "basis",
            "policy",
        ]


class TestErrors:
    def test_a_missing_extra_is_the_pip_command(self):
        error = MissingExtraError("tuning", "torch", "train")
        assert (error.feature, error.package, error.extra) == ("tuning", "torch", "train")
        assert str(error) == (
            'tuning needs the package torch. Install it with: pip install "tinylora-edge[train]"'
        )
        assert isinstance(error, ImportError)

    @pytest.mark.parametrize("name", tree())
    def test_errors_can_be_pickled(self, name):
        import pickle

        arguments = ("a", "b", "c") if name == "MissingExtraError" else ("what was wrong",)
        error = tree()[name](*arguments)
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
