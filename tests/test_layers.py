"""The house of docs/ARCHITECTURE.md, read from the source with ast: arrows, circles, names, and sizes.

cli -> serve, exporters, train -> runtime -> core. Imports inside functions and under TYPE_CHECKING count too:
a layer must not even know the names above it, and no two files import each other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {  # as pyproject.toml maps them
    "tinylora_edge": "tinylora_edge",
    "exporters": "tinylora_edge.exporters",
    "runtime": "tinylora_edge.runtime",
    "cli": "tinylora_edge.cli",
}
SPECIAL = (
    "cli",
    "exporters",
    "formats",
    "runtime",
    "serve",
    "shipping",
    "tasks",
    "train",
    "wire",
)  # the rest is core
MAY_IMPORT = {
    "face": {"core", "wire", "formats"},  # `tinylora_edge` itself
    "core": {"core", "wire"},
    "wire": {"core", "wire"},
    "formats": {"core", "wire", "formats"},
    "shipping": {"core", "wire", "formats", "shipping"},
    "tasks": {"core", "tasks"},
    "runtime": {"core", "wire", "formats", "tasks", "runtime"},
    "exporters": {"core", "wire", "formats", "exporters"},
    "train": {"core", "wire", "formats", "tasks", "runtime", "train"},
    "serve": {"core", "wire", "formats", "shipping", "tasks", "runtime", "serve"},
    "cli": {
        *("face", "core", "wire", "formats", "shipping", "tasks", "runtime", "exporters", "train", "serve"),
        "cli",
    },
}
KNOW_NO_MODEL = ("wire", "tasks")
"""Layers that take no more of the core than these."""
NO_MODEL = {f"tinylora_edge.{name}" for name in ("documents", "errors", "limits", "system")}

ENGINES = {  # package -> engine: onnxruntime-genai is a layer on onnxruntime
    "llama_cpp": "llama.cpp",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime_genai": "ONNX Runtime",
}
EXTERNAL = {  # None: anything but an engine
    "face": set(),
    "core": {"numpy"},
    "wire": {"numpy"},
    "formats": {"numpy"},
    "shipping": set(),
    "tasks": {"numpy"},
    "runtime": {"numpy", *ENGINES},
    "exporters": {"numpy", "gguf", "onnx"},
    "train": None,
    "serve": {"anyio", "prometheus_client", "sse_starlette", "starlette", "uvicorn"},
    "cli": None,
}
BORDERS = {  # the only modules that may import more than their layer
    "tinylora_edge.formats.gguf": {"gguf"},
    "tinylora_edge.formats.gguf_transformers": {"gguf"},
    "tinylora_edge.cli.demo.proof": {"llama_cpp"},  # the demo compares with the plain engine
    "tinylora_edge.cli.doctor.probe": {"llama_cpp", "onnxruntime"},  # a process of its own
}
OPTIONAL = {  # the same, but in functions only: who does not need them does not have them
    "tinylora_edge.wire.tags": {"cryptography"},
    "tinylora_edge.privacy": {"dp_accounting"},
    "tinylora_edge.exporters.factors.factorize": {"threadpoolctl"},
    "tinylora_edge.exporters.hub.client": {"huggingface_hub"},
    "tinylora_edge.shipping.publish": {"fsspec"},
    "tinylora_edge.exporters.interop.peft": {"torch"},  # draws projections that were not saved
    "tinylora_edge.exporters.onnx.worker": {"torch", "transformers"},  # a process of its own
    "tinylora_edge.runtime.llama.pool.scheduler": {"llguidance"},
    "tinylora_edge.runtime.onnx.pool.scheduler": {"llguidance"},
    "tinylora_edge.runtime.pool.grammar": {"llguidance"},
    "tinylora_edge.serve.page.picture": {"segno"},
    "tinylora_edge.tasks._gsm8k": {"huggingface_hub", "pyarrow"},
    "tinylora_edge.tasks.rewards.schema": {"jsonschema", "referencing"},
}


@dataclass(frozen=True)
class Import:
    """One imported module: `name` is absolute; `lazy` if it happens in a function or never."""

    name: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
}


def layer(module: str) -> str:
    head = module.split(".")[1:2]
    if not head:
        return "face"
    return head[0] if head[0] in SPECIAL else "core"


def imports(module: str, source: str, *, package: bool) -> Iterator[Import]:
    """Yield what a module imports; of `from x import y` both x and, where y is a module of ours, x.y."""
    yield from _walk(ast.parse(source), module if package else module.rpartition(".")[0], lazy=False)


def _walk(node: ast.AST, parent: str, *, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            up = parent.split(".")[: len(parent.split(".")) - node.level + 1]
            base = ".".join([*up, base] if base else up)
        members = [f"{base}.{alias.name}" for alias in node.names]
        ours = [name for name in members if name in MODULES]
        if len(ours) < len(members):  # `from . import _strategies` alone takes nothing from the package
            yield Import(base, node.lineno, lazy)
        yield from (Import(name, node.lineno, lazy) for name in ours)
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    lazy = lazy or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, parent, lazy=lazy)


def imports_of(module: str) -> list[Import]:
    path = MODULES[module]
    return list(imports(module, path.read_text("utf-8"), package=path.name == "__init__.py"))


def trespassing(module: str, name: str) -> bool:
    """Whether a name has an underscore, and lies in a folder that the module is not in."""
    parts = name.split(".")
    hidden = [
        number for number, part in enumerate(parts) if part.startswith("_") and part.strip("_") == part[1:]
    ]
    return any(module.split(".")[:number] != parts[:number] for number in hidden)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected parts of a graph with more than one member (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def violations(module: str, found: list[Import]) -> list[str]:
    """Say what breaks the rules, as `line: why`."""
    result = []
    here = layer(module)
    for item in found:
        top = item.name.partition(".")[0]
        if top == "tinylora_edge":
            there = layer(item.name)
            model = here in KNOW_NO_MODEL and there == "core" and item.name not in NO_MODEL
            if there not in MAY_IMPORT[here] or model:
                result.append(f"{item.line}: {here} imports {item.name}")
            elif trespassing(module, item.name):
                result.append(f"{item.line}: {module} imports {item.name}, which is another folder's own")
        elif top not in sys.stdlib_module_names:
            allowed = EXTERNAL[here]
            fine = top not in ENGINES if allowed is None else top in allowed
            fine = fine or top in BORDERS.get(module, set())
            fine = fine or (item.lazy and top in OPTIONAL.get(module, set()))
            if not fine:
                result.append(f"{item.line}: {here} imports {top}")
    return result


def reachable_engines(module: str, seen: set[str] | None = None) -> set[str]:
    """Engines that a module imports, itself or through modules of ours; `load` may choose one lazily."""
    seen = set() if seen is None else seen
    if module in seen:
        return set()
    seen.add(module)
    engines = set()
    for item in imports_of(module):
        if item.name.partition(".")[0] in ENGINES:
            engines.add(ENGINES[item.name.partition(".")[0]])
        elif item.name in MODULES and not (item.lazy and module.endswith((".runtime", ".load"))):
            engines |= reachable_engines(item.name, seen)
    return engines


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    assert violations(module, imports_of(module)) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("runtime._x", "from ..exporters import gguf", "runtime imports tinylora_edge.exporters.gguf"),
        ("runtime._x", "def f():\n    import torch", "runtime imports torch"),
        ("runtime._x", "import onnx", "runtime imports onnx"),
        (
            "exporters._x",
            "from tinylora_edge.runtime import load",
            "exporters imports tinylora_edge.runtime.load",
        ),
        ("exporters._x", "import llama_cpp.llama", "exporters imports llama_cpp"),
        ("_x", "import gguf", "core imports gguf"),
        ("_tags", "import cryptography", "core imports cryptography"),
        ("_x", "from . import runtime", "core imports tinylora_edge.runtime"),
        ("_x", "if TYPE_CHECKING:\n    from .runtime import load", "core imports tinylora_edge.runtime.load"),
        ("cli._x", "from llama_cpp import Llama", "cli imports llama_cpp"),
        ("serve._x", "import llama_cpp", "serve imports llama_cpp"),
        ("serve._x", "from ..train import run", "serve imports tinylora_edge.train.run"),
        ("runtime._x", "from ..serve import limits", "runtime imports tinylora_edge.serve.limits"),
        ("wire._x", "from ..basis import Basis", "wire imports tinylora_edge.basis"),
        ("tasks._x", "from ..vector import MicroVector", "tasks imports tinylora_edge.vector"),
        ("_x", "from .formats import bundle", "core imports tinylora_edge.formats.bundle"),
        (
            "runtime._x",
            "from ..tasks._load import Sample",
            "tinylora_edge.runtime._x imports tinylora_edge.tasks._load, which is another folder's own",
        ),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str, expected: str) -> None:
    module = f"tinylora_edge.{module}"
    found = violations(module, list(imports(module, source, package=False)))
    assert [item.partition(": ")[2] for item in found] == [expected]


def test_no_two_tests_share_a_name() -> None:
    """pytest collects the second of two files with one name as an error, after all the others have run."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_files_import_each_other() -> None:
    edges = {
        module: {item.name for item in imports_of(module) if item.name in MODULES} - {module}
        for module in MODULES
    }
    assert circles(edges) == []


def test_a_circle_is_seen() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"g"}, "g": {"e"}}
    assert circles(edges) == [["b", "c"], ["e", "f", "g"]]


def test_every_layer_was_read() -> None:
    assert {layer(module) for module in MODULES} == set(MAY_IMPORT)
    assert any(item.name == "gguf" for item in imports_of("tinylora_edge.formats.gguf"))
    assert reachable_engines("tinylora_edge.runtime.llama.model") == {"llama.cpp"}


@pytest.mark.parametrize("module", [module for module in MODULES if layer(module) == "runtime"])
def test_a_runtime_module_knows_one_engine_at_most(module: str) -> None:
    assert len(reachable_engines(module)) <= 1
    if module in ("tinylora_edge.runtime", "tinylora_edge.runtime.load"):
        assert reachable_engines(module) == set(), "an engine is loaded only when `load` needs it"


@pytest.mark.parametrize(
    "module",
    [
        "tinylora_edge",
        "tinylora_edge.runtime",
        "tinylora_edge.exporters",
        "tinylora_edge.serve.store",
    ],
)
def test_importing_loads_neither_engines_nor_training_libraries(module: str) -> None:
    heavy = {
        "torch",
        "transformers",
        "onnx",
        "scipy",
        "safetensors",
        "typer",
        "rich",
        "cryptography",
        "huggingface_hub",
        "starlette",
        "uvicorn",
        *ENGINES,
    }
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
