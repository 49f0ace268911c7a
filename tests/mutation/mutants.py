"""Mutants of the wire, the vector, the policy and the basis: does a test notice each?

    python tests/mutation/mutants.py --sample 150

A mutant is a module with one operator, constant, condition, return or raise changed. Each runs in a fork of
this process, which has imported what is not ours, under the tests of its module, and where those pass under
all of them. Known to be no faults: what only makes messages, annotations and `__repr__`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TESTS = {
    "wire.frame": ["wire/test_frame_fuzz.py", "core/test_vector.py"],
    "wire.tags": ["wire/test_tags.py", "wire/test_keys.py"],
    "wire.text": ["wire/test_text.py"],
    "wire.pem": ["wire/test_keys.py"],
    "wire.marks": ["wire/test_marks.py"],
    "wire.carriers": ["wire/test_carriers.py"],
    "vector": ["core/test_vector.py", "core/test_policy.py", "core/test_policy_memory.py"],
    "basis": ["core/test_basis.py", "core/test_explicit_basis.py", "core/maxima/test_maxima.py"],
}
SLOW = "not kill and not processes_that_share and not real_model and not every_damage"
SECONDS = 300  # a mutant that takes longer is noticed

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield what may be changed, and how, in an order that stays."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        inside: list[ast.AST | None] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            inside = [*node.exc.args, *node.exc.keywords]  # a message
        elif isinstance(node, ast.JoinedStr | ast.Assert) or getattr(node, "name", "") in (
            "__repr__",
            "_shown",
        ):
            inside = list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.FunctionDef):
            inside = [node.returns, *(each.annotation for each in node.args.args + node.args.kwonlyargs)]
        elif isinstance(node, ast.AnnAssign):
            inside = [node.annotation]
        skipped |= {id(each) for part in inside if part is not None for each in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
            yield node, "comparison"
        elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in _SWAPS:
            yield node, "operator"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            yield node, "constant"
        elif isinstance(node, ast.If | ast.IfExp):
            yield node, "condition"
        elif isinstance(node, ast.Raise) and node.exc is not None:
            yield node, "raise"
        elif isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None):
            yield node, "return"


def mutant(tree: ast.Module, number: int) -> tuple[ast.Module, str]:
    """Return a copy with the change of one site, and where it is."""
    changed = copy.deepcopy(tree)
    node, kind = list(sites(changed))[number]
    where = f"line {getattr(node, 'lineno', 0)}, {kind}: {ast.unparse(node).splitlines()[0][:70]}"
    target: Any = node
    if kind == "comparison":
        target.ops[0] = _SWAPS[type(target.ops[0])]()
    elif kind == "operator":
        target.op = _SWAPS[type(target.op)]()
    elif kind == "constant":
        target.value = not target.value if isinstance(target.value, bool) else target.value + 1
    elif kind == "condition":
        target.test = ast.UnaryOp(ast.Not(), target.test)
    elif kind == "return":
        target.value = ast.Constant(None)
    else:
        target.exc, target.cause = ast.Call(ast.Name("RuntimeError", ast.Load()), [], []), None
    return ast.fix_missing_locations(changed), where


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of one module, whose code is the mutant's."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._code = name, path, compile(tree, str(path), "exec")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return (
            importlib.util.spec_from_file_location(name, self._path, loader=self)
            if name == self._name
            else None
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


def noticed(name: str, tree: ast.Module, tests: Sequence[str]) -> bool:
    """Run tests in a fork with a mutant, and tell whether one failed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SECONDS)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            path = ROOT / "tinylora_edge" / f"{name.replace('.', '/')}.py"
            sys.meta_path.insert(0, _Finder(f"tinylora_edge.{name}", path, tree))
            import pytest

            paths = [str(ROOT / "tests" / test) for test in tests]
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", SLOW, *paths]))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many mutants by chance; all of them by default")
    parser.add_argument("--module", action="append", choices=[*TESTS])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    for heavy in (
        "pytest",
        "numpy",
        "gguf",
        "hypothesis",
        "psutil",
        "cryptography.hazmat.primitives.asymmetric.ed25519",
    ):
        importlib.import_module(heavy)
    trees = {
        name: ast.parse((ROOT / "tinylora_edge" / f"{name.replace('.', '/')}.py").read_text("utf-8"))
        for name in options.module or TESTS
    }
    every = [(name, number) for name, tree in trees.items() for number in range(len(list(sites(tree))))]
    drawn = random.Random(options.seed).sample(every, min(options.sample or len(every), len(every)))
    print(f"{len(every)} mutants, {len(drawn)} of them run", flush=True)
    killed, all_tests = dict.fromkeys(trees, 0), [test for tests in TESTS.values() for test in tests]
    total = dict.fromkeys(trees, 0)
    for name, number in drawn:
        tree, where = mutant(trees[name], number)
        found = noticed(name, tree, TESTS[name]) or noticed(name, tree, all_tests)
        killed[name] += found
        total[name] += 1
        if not found:
            print(f"lives: {name}, {where}", flush=True)
        done = sum(total.values())
        if done % 25 == 0:
            print(f"{sum(killed.values())} of {done} noticed", flush=True)
    for name in trees:
        print(f"{name}: {killed[name]} of {total[name]}")
    print(f"noticed {sum(killed.values())} of {len(drawn)}: {sum(killed.values()) / len(drawn):.1%}")


if __name__ == "__main__":
    main()
