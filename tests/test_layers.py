"""The layers of docs/ARCHITECTURE.md, read from the source with ast: arrows, circles, packages.

cli -> serve, exporters, train -> eval -> runtime -> core. Imports in functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "tinylora_edge"
MODULES = {  # name -> file; cli, exporters and runtime are links to the folders beside the package
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in (PACKAGE, *(f"{PACKAGE}/{link}" for link in ("cli", "exporters", "runtime")))
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
}
BASE = {"core", "wire", "formats"}
MAY_IMPORT = {  # "face" is `tinylora_edge` itself, "core" its other files
    "face": {*BASE},
    "core": {"core", "wire"},
    "wire": {"core", "wire"},
    "formats": {*BASE},
    "shipping": {*BASE, "shipping"},
    "tasks": {"core", "tasks"},
    "runtime": {*BASE, "tasks", "runtime"},
    "exporters": {*BASE, "exporters"},
    "eval": {*BASE, "tasks", "runtime", "eval"},
    "train": {*BASE, "shipping", "tasks", "runtime", "eval", "train"},
    "serve": {*BASE, "shipping", "tasks", "runtime", "serve"},
    "cli": {*BASE, "face", "shipping", "tasks", "runtime", "exporters", "eval", "train", "serve", "cli"},
}
NO_MODEL = {f"{PACKAGE}.{name}" for name in ("errors", "jsonio", "limits", "version", "writes")}
"""What `wire` and `tasks`, which know no model, take of the core."""
ENGINES = {"llama_cpp": "llama.cpp", "onnxruntime": "ONNX Runtime", "onnxruntime_genai": "ONNX Runtime"}
SERVER = {"anyio", "prometheus_client", "pydantic", "sse_starlette", "starlette", "uvicorn"}
PACKAGES = {  # layer -> packages that it imports; None: any but an engine
    "face": set(),
    "core": {"numpy"},
    "wire": {"numpy"},
    "formats": {"numpy", "gguf"},
    "shipping": set(),
    "tasks": {"numpy"},
    "runtime": {"numpy", *ENGINES},
    "exporters": {"numpy", "gguf", "onnx"},
    "eval": {"numpy"},
    "train": None,
    "serve": SERVER,
    "cli": None,
}
OPTIONAL = {  # layer -> packages of extras that it imports in functions only
    "wire": {"cryptography"},
    "exporters": {
        *("huggingface_hub", "onnx_ir", "onnxscript", "safetensors", "threadpoolctl", "torch", "transformers")
    },
    "formats": {"cryptography", "transformers"},
    "serve": {"psycopg", "psycopg_pool"},
    "shipping": {"fsspec", "segno"},
    "runtime": {"cmaes", "llguidance", "jinja2"},  # which llama-cpp-python brings along
    "cli": set(ENGINES),
}


def layer(module: str) -> str:
    head = module.split(".")[1:2]
    return "face" if not head else head[0] if head[0] in MAY_IMPORT else "core"


@cache
def imports(module: str) -> list[tuple[str, int, bool]]:
    """Return (absolute name, line, whether in a function or for types alone) of what a module imports."""
    path = MODULES[module]
    parent = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parent.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            members = [f"{base}.{alias.name}" for alias in node.names]
            ours = [name for name in members if name in MODULES]
            yield from ((name, node.lineno, lazy) for name in ours or [base])
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lazy = lazy or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy)

    return list(walk(ast.parse(path.read_text("utf-8")), False))


def wrong(module: str) -> Iterator[str]:
    own = layer(module)
    for name, line, lazy in imports(module):
        head = name.partition(".")[0]
        if head == PACKAGE:
            known = own not in ("wire", "tasks") or layer(name) != "core" or name in NO_MODEL
            allowed = layer(name) in MAY_IMPORT[own] and known
        elif head in ENGINES or PACKAGES[own] is not None:
            listed = (PACKAGES[own] or set()) | (OPTIONAL.get(own, set()) if lazy else set())
            allowed = head in sys.stdlib_module_names or head in listed
        else:
            allowed = True
        if not allowed:
            yield f"{module}:{line}: {own} imports {name}"


def test_imports_follow_the_arrows() -> None:
    assert [found for module in MODULES for found in wrong(module)] == []


def test_a_folder_beside_the_package_is_left_by_absolute_imports() -> None:
    """A relative one would lead through the link in the package, which no editor follows from the folder."""
    for folder in ("cli", "exporters", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            inside = len(path.relative_to(ROOT).parts) - 1
            tree = ast.walk(ast.parse(path.read_text("utf-8")))
            assert [n.lineno for n in tree if isinstance(n, ast.ImportFrom) and n.level > inside] == [], path


def test_no_files_import_each_other() -> None:
    graph = {module: {n for n, *_ in imports(module) if n in MODULES} - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_every_layer_was_read() -> None:
    assert {layer(module) for module in MODULES} == set(MAY_IMPORT)


def engines(module: str, seen: set[str]) -> set[str]:
    seen.add(module)
    loaded = [name for name, _, lazy in imports(module) if not lazy]
    found = {ENGINES[head] for name in loaded if (head := name.partition(".")[0]) in ENGINES}
    return found.union(*(engines(name, seen) for name in loaded if name in MODULES and name not in seen))


def test_a_runtime_module_knows_one_engine_at_most() -> None:
    runtime = [module for module in MODULES if layer(module) == "runtime"]
    assert [module for module in runtime if len(engines(module, set())) > 1] == []


@pytest.mark.parametrize(
    "module", [PACKAGE, *(f"{PACKAGE}.{name}" for name in ("runtime", "exporters", "serve"))]
)
def test_importing_loads_neither_engines_nor_training_libraries(module: str) -> None:
    heavy = {"torch", "transformers", "onnx", "scipy", "safetensors", "typer", "rich", "cryptography"}
    heavy |= {"huggingface_hub", "starlette", "uvicorn", *ENGINES}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_runtime_loads_little_beside_numpy() -> None:
    code = "import sys, numpy; a = {*sys.modules}; import tinylora_edge.runtime; print(*{*sys.modules} - a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    packages = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert {name for name in packages if "cython" not in name} == {PACKAGE, "gguf", "numpy", "yaml"}
    assert sum(name.startswith(PACKAGE) for name in loaded) < 75
    assert len(loaded) < 230
