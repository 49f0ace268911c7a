"""The public surface: names, what importing costs, and the tree of errors."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module

import pytest

import tinylora_edge
from tinylora_edge import MissingExtraError, TinyLoraError, errors

HEAVY = ("torch", "transformers", "onnx", "scipy", "llama_cpp", "onnxruntime", "typer", "cryptography")


def imported_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def tree() -> dict[str, type[TinyLoraError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, TinyLoraError)
    }


FACES = (
    "tinylora_edge",
    "tinylora_edge.exporters",
    "tinylora_edge.exporters.hub",
    "tinylora_edge.formats",
    "tinylora_edge.runtime",
    "tinylora_edge.serve",
    "tinylora_edge.shipping",
    "tinylora_edge.tasks",
    "tinylora_edge.train",
    "tinylora_edge.trust",
    "tinylora_edge.wire",
)
"""What apps and the command line import from."""

PUBLIC = [(face, name) for face in FACES for name in import_module(face).__all__ if name != "__version__"]


@pytest.mark.parametrize("face", FACES)
class TestFaces:
    def test_all_is_sorted_and_without_repetition(self, face):
        names = import_module(face).__all__
        assert list(names) == sorted(set(names))

    def test_it_lists_what_a_reader_finds(self, face):
        """Whatever is there without an underscore is listed, its own modules aside, and nothing else."""
        module = import_module(face)
        found = {name for name in dir(module) if not name.startswith("_")}
        found -= {name for name in found if inspect.ismodule(vars(module).get(name))} - set(module.__all__)
        assert found == set(module.__all__) - {"__version__"}

    def test_it_is_a_tour(self, face):
        assert inspect.getdoc(import_module(face)).count("\n") >= 2, "say what the names are for"


@pytest.mark.parametrize(("face", "name"), PUBLIC, ids=[f"{face}.{name}" for face, name in PUBLIC])
def test_every_public_name_is_documented(face, name):
    """A callable says what it takes, what it gives and what it raises; a class what it holds."""
    value = getattr(import_module(face), name)
    doc = inspect.getdoc(value) or ""
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return  # a constant or an alias: documented where it stands
    assert doc
    assert re.match(r"[A-Z`]", doc), "a full sentence"
    if inspect.isfunction(value):
        parameters = [
            name for name in inspect.signature(value).parameters if name not in ("progress", "report")
        ]
        undescribed = [parameter for parameter in parameters if not re.search(rf"\b{parameter}\b", doc)]
        assert not undescribed or "Arguments and errors: see `" in doc  # of the class that it calls
        assert re.search(r"Raises:|Never raises|Return|Yield|Arguments and errors: see `", doc)


class TestNames:
    def test_every_error_is_exported(self):
        assert set(tree()) <= set(tinylora_edge.__all__)

    def test_names_that_the_design_promises(self):
        from tinylora_edge import factorization, projection, runtime, tying

        assert list(inspect.signature(projection.project).parameters) == ["seed", "module", "u", "rank"]
        assert list(inspect.signature(tying.tie).parameters) == ["modules", "scheme", "groups"]
        assert list(inspect.signature(factorization.truncated_svd).parameters)[:2] == ["weight", "rank"]
        load = inspect.signature(runtime.load).parameters
        assert list(load)[:3] == ["base", "vector_bytes", "policy"]
        assert load["vector_bytes"].default is None
        assert load["policy"].kind is inspect.Parameter.KEYWORD_ONLY
        assert list(inspect.signature(tinylora_edge.load_basis).parameters) == ["path"]
        assert list(inspect.signature(tinylora_edge.save_basis).parameters) == ["basis", "path"]
        for name in ("modules", "rank", "u", "groups", "seed"):
            assert name in tinylora_edge.Basis.__dataclass_fields__
        for name in ("digest", "size", "R", "delta"):
            assert hasattr(tinylora_edge.Basis, name)
        assert list(tinylora_edge.MicroVector.__dataclass_fields__) == ["values", "dtype", "sequence"]
        assert list(inspect.signature(tinylora_edge.MicroVector.from_bytes).parameters) == [
            "data",
            "basis",
            "policy",
        ]

    def test_version(self):
        from importlib.metadata import version

        assert tinylora_edge.__version__ == version("tinylora-edge")


class TestImports:
    @pytest.mark.parametrize("statement", ["import tinylora_edge", "import tinylora_edge.runtime"])
    def test_a_device_loads_no_engine_and_no_training_stack(self, statement):
        loaded = imported_by(statement)
        assert "tinylora_edge" in loaded
        assert not loaded & set(HEAVY)

    def test_the_exporter_needs_no_torch_and_no_engine(self):
        assert not imported_by("import tinylora_edge.exporters") & {"torch", "transformers", "llama_cpp"}

    def test_two_modules_alone_import_gguf(self):
        package = tinylora_edge.__path__[0]
        importers = subprocess.run(
            ["grep", "-lE", r"^\s*(import gguf|from gguf)", "-r", package, "--include=*.py"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        core = {path.removeprefix(f"{package}/") for path in importers}
        assert {path for path in core if not path.startswith("train/")} == {
            "formats/gguf.py",
            "formats/gguf_transformers.py",
        }

    def test_the_type_marker_is_installed(self):
        from importlib.resources import files

        assert files("tinylora_edge").joinpath("py.typed").is_file()


class TestErrors:
    def test_the_drawn_tree_is_the_real_one(self):
        drawn, path = {}, []
        for line in inspect.getdoc(errors).splitlines():
            match = re.match(
                r"(?P<indent>[ │├└─]*)(?P<name>\w+Error)\b(?:\s+\(also an? (?P<also>\w+)\))?", line
            )
            if not match or line.rstrip().endswith((".", ":")):
                continue
            depth = len(match["indent"]) // 4 - (1 if line.startswith("    ") else 0)
            path[depth:] = [match["name"]]
            parents = [path[depth - 1]] if depth else ["Exception"]
            drawn[match["name"]] = parents + ([match["also"]] if match["also"] else [])
        real = {name: [base.__name__ for base in error.__bases__] for name, error in tree().items()}
        assert drawn == real
        assert len(real) >= 15

    @pytest.mark.parametrize("name", tree())
    def test_each_says_in_one_sentence_when_it_fires(self, name):
        doc = vars(tree()[name])["__doc__"]
        assert "\n" not in doc
        assert doc.endswith(".")
        assert doc.count(". ") == 0

    def test_the_design_s_branches(self):
        of = tree()
        for parent, children in {
            "VectorError": (
                "FrameError ChecksumError SignatureError RollbackError BasisMismatchError NonFiniteError"
            ),
            "BasisError": "BaseMismatchError CorruptBasisError",
            "ExportError": "UnsupportedModelError",
            "TinyLoraError": "VectorError BasisError ExportError TrainError MissingExtraError",
        }.items():
            assert all(of[parent] in of[child].__bases__ for child in children.split())

    def test_a_missing_extra_is_the_pip_command(self):
        error = MissingExtraError("tuning", "torch", "train")
        assert (error.feature, error.package, error.extra) == ("tuning", "torch", "train")
        assert str(error) == (
            'tuning needs the package torch. Install it with: pip install "tinylora-edge[train]"'
        )
        assert isinstance(error, ImportError)

    @pytest.mark.parametrize("name", tree())
    def test_errors_can_be_pickled(self, name):
        """They cross process borders: a pool's worker raises them, too."""
        import pickle

        arguments = ("a", "b", "c") if name == "MissingExtraError" else ("what was wrong",)
        error = tree()[name](*arguments)
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
