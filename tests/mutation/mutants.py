"""Mutants of the wire, the vector, the policy and the basis: does a test notice each?

    python tests/mutation/mutants.py --sample 150

A mutant is a module with one operator, constant, condition, return or raise changed. It runs in a fork of
this process under the tests that run the changed statement, the fastest first, until one of them fails. A
first run without a mutant finds which these are; it has to pass. Left alone is what only makes messages,
annotations, decorators and `__repr__`. `equivalent.txt` lists changes that change nothing.

What was found is kept in `out/mutants`, so that a run that was stopped goes on where it was: what was noticed
counts until its module changes, and what was not is tried again when any test does.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib.abc
import importlib.util
import inspect
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from sites import Site, mutant, sites

ROOT = Path(__file__).parent.parent.parent
KEPT = ROOT / "out" / "mutants"
MODULES = [
    *("wire.frame", "wire.tags", "wire.text", "wire.pem", "wire.marks", "wire.carriers"),
    *("wire.days", "wire.freshness", "wire.quantization", "wire.statements", "vector", "basis"),
]
TESTS = [
    *("wire", "core/test_vector.py", "core/policy", "core/trust/test_policy_trust.py"),
    *("core/test_basis.py", "core/test_explicit_basis.py", "core/test_limits.py"),
]
SLOW = "not kill and not processes_that_share and not real_model and not every_damage"
SECONDS = 300  # a mutant that takes longer is noticed
HEAVY = (
    *("pytest", "numpy", "gguf", "hypothesis", "hypothesis.extra.numpy", "psutil"),
    "cryptography.hazmat.primitives.asymmetric.ed25519",
)
FAILED, PASSED = 1, 0  # as pytest ends

Drawn = tuple[str, int, Site]
"""Module, number of the site in it, and the site."""
Reached = dict[str, tuple[float, dict[str, list[int]]]]
"""Test -> its seconds, and the lines that it runs of each module."""


class Selection:
    """A plugin of pytest: some tests alone, in this order."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = {name: place for place, name in enumerate(wanted)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self._wanted]
        items.sort(key=lambda item: self._wanted[item.nodeid])


class Loop:
    """A plugin of pytest: tests are collected once, and mutants run in their place, each in a fork.

    A function's code is exchanged where the function lives, so that nothing is imported anew.

    Args:
        work: is called when the tests are collected.
    """

    def __init__(self, work: Callable[[Loop], None]) -> None:
        self._work = work
        self._items: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], list[FunctionType]] = {}

    def pytest_runtestloop(self, session: Any) -> bool:
        self._items = {item.nodeid: item for item in session.items}
        files = {str(path(name)): name for name in MODULES}
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename in files:
                place = files[each.__code__.co_filename], each.__code__.co_qualname
                self._functions.setdefault(place, []).append(each)
        self._work(self)
        return True

    def notices(self, name: str, before: ast.Module, after: ast.Module, tests: list[str]) -> bool:
        """Tell whether one of these tests fails with a mutant that no import runs."""
        codes = [_codes(compile(tree, str(path(name)), "exec")) for tree in (before, after)]
        changed = {place: code for place, code in codes[1].items() if code != codes[0][place]}

        def work() -> int:
            from _pytest.runner import runtestprotocol

            for place, code in changed.items():
                for function in self._functions[name, place]:
                    function.__code__ = code
            for test, later in zip(tests, [*tests[1:], None], strict=True):
                following = None if later is None else self._items[later]
                if any(one.failed for one in runtestprotocol(self._items[test], False, following)):
                    return FAILED
            return PASSED

        return bool(tests) and forked(work) != PASSED


def _codes(module: CodeType) -> dict[str, CodeType]:
    """Return the code of each function that a module makes when it is imported, by its qualified name."""
    found, left = {}, [module]
    while left:
        for code in left.pop().co_consts:
            if not isinstance(code, CodeType):
                continue
            if code.co_flags & inspect.CO_OPTIMIZED:
                found[code.co_qualname] = code
            else:  # the body of a class
                left.append(code)
    return found


class Tracer:
    """A plugin of pytest: which lines of our modules each test runs, and how long it takes."""

    def __init__(self) -> None:
        self._names = {str(path(name)): name for name in MODULES}
        self.reached: Reached = {}
        self._lines: dict[str, set[int]] = {}

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        from _pytest.runner import runtestprotocol

        self._lines, began = {}, time.process_time()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            runtestprotocol(item, nextitem=nextitem)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        lines = {name: sorted(found) for name, found in self._lines.items()}
        self.reached[item.nodeid] = time.process_time() - began, lines
        return True

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        name = self._names.get(frame.f_code.co_filename)
        if name is None:
            return None
        lines = self._lines.setdefault(name, set())

        def step(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            lines.add(frame.f_lineno)
            return step

        return step


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of one module, whose code is the mutant's."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self._name, self._path = f"tinylora_edge.{name}", path(name)
        self._code = compile(tree, str(self._path), "exec")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


def paths() -> list[str]:
    return [str(ROOT / "tests" / test) for test in TESTS]


def path(name: str) -> Path:
    return ROOT / "tinylora_edge" / f"{name.replace('.', '/')}.py"


def forked(work: Callable[[], int]) -> int:
    """Do work in a silent fork of this process, and return the status that it ends with."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            signal.alarm(SECONDS)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tested(plugin: Any, files: Collection[str]) -> int:
    import pytest

    arguments = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", SLOW, *files]
    return int(pytest.main(arguments, plugins=[plugin]))


def reached(tests: str) -> Reached:
    """Return what each test runs, found anew where a module or a test has changed.

    Raises:
        SystemExit: a test fails without a mutant.
    """
    key = digest(tests, *(path(name).read_text("utf-8") for name in MODULES))
    kept = KEPT / "reached.json"
    with suppress(OSError, ValueError):
        known = json.loads(kept.read_text("utf-8"))
        if known["key"] == key:
            return known["reached"]  # type: ignore[no-any-return]

    def work() -> int:
        tracer = Tracer()
        status = tested(tracer, paths())
        kept.write_text(json.dumps({"key": key, "reached": tracer.reached}), "utf-8")
        return status

    if (status := forked(work)) != PASSED:
        kept.unlink(missing_ok=True)
        sys.exit(f"the tests do not pass without a mutant: pytest ends with {status}")
    return reached(tests)


def noticed_at_import(name: str, before: ast.Module, after: ast.Module, tests: list[str]) -> bool:
    """Tell whether one of these tests fails where a mutant is imported."""

    def work() -> int:
        sys.meta_path.insert(0, _Finder(name, after))
        files = dict.fromkeys(str(ROOT / test.partition("::")[0]) for test in tests)
        return tested(Selection(tests), list(files))

    # It may fail already where it is imported: then pytest ends with another status than `FAILED`.
    return bool(tests) and forked(work) != PASSED


def told(name: str, site: Site, found: Reached) -> list[str]:
    """Return the tests that may notice a site, the fastest first: that run it, or where an import does, all
    tests of the files in which one runs its module.
    """
    wanted = set(site.lines)
    tests = {test for test, (_, lines) in found.items() if name in lines}
    if wanted:
        tests = {test for test in tests if wanted.intersection(found[test][1][name])}
    else:
        files = {test.partition("::")[0] for test in tests}
        tests = {test for test in found if test.partition("::")[0] in files}
    return sorted(tests, key=lambda test: (found[test][0], test))


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def equivalent() -> set[str]:
    """Return the names of changes that change nothing. Each stands in the file under its reason."""
    lines = Path(__file__).with_name("equivalent.txt").read_text("utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def known(kind: str) -> set[str]:
    """Return the keys of what was `noticed` before, or `lives`."""
    with suppress(FileNotFoundError):
        return set((KEPT / kind).read_text("utf-8").splitlines())
    return set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many mutants by chance; all of them by default")
    parser.add_argument("--module", action="append", choices=MODULES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    KEPT.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / "tests"))
    for heavy in HEAVY:
        importlib.import_module(heavy)
    files = [file for test in TESTS for file in sorted((ROOT / "tests" / test).rglob("*.py"))]
    files += [ROOT / "tests" / test for test in TESTS if test.endswith(".py")]
    tests = digest(*(file.read_text("utf-8") for file in files))
    found, trees, out = reached(tests), {}, sys.stdout
    for name in options.module or MODULES:
        trees[name] = ast.parse(path(name).read_text("utf-8"))
    every = [(name, number, site) for name in trees for number, site in enumerate(sites(trees[name]))]
    nothing = equivalent()
    drawn = random.Random(options.seed).sample(every, min(options.sample or len(every), len(every)))
    drawn = [each for each in drawn if f"{each[0]} {each[2].name}" not in nothing]
    print(f"{len(every)} mutants, of which {len(drawn)} are run", flush=True)
    keys = {
        each: digest(each[0], each[2].name, str(each[1]), path(each[0]).read_text("utf-8")) for each in drawn
    }

    def lives(each: Drawn) -> bool | None:
        """Whether no test noticed it; None where that is not known yet."""
        if keys[each] in known("noticed"):
            return False
        return True if f"{keys[each]} {tests}" in known("lives") else None

    def settle(those: list[Drawn], notices: Callable[..., bool]) -> None:
        for place, each in enumerate(those):
            name, number, site = each
            if place % 25 == 24:
                print(f"{place + 1} of {len(those)}", file=out, flush=True)
            if lives(each) is not None:
                continue
            if notices(name, trees[name], mutant(trees[name], number), told(name, site, found)):
                kept, line = "noticed", keys[each]
            else:
                kept, line = "lives", f"{keys[each]} {tests}"
                print(f"lives: {name} line {site.line}: {site.name}", file=out, flush=True)
            with open(KEPT / kept, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    inside = [each for each in drawn if each[2].lines]
    if (child := os.fork()) == 0:  # this process stays one that has imported nothing of ours
        with open(os.devnull, "w") as null, redirect_stdout(null):
            status = tested(Loop(lambda loop: settle(inside, loop.notices)), paths())
        os._exit(status)
    if os.waitpid(child, 0)[1]:
        sys.exit("the mutants could not be run")
    settle([each for each in drawn if not each[2].lines], noticed_at_import)
    alive = [each for each in drawn if lives(each)]
    for each in alive:
        print(f"lives: {each[0]} line {each[2].line}: {each[2].name}")
    for name in trees:
        total = sum(each[0] == name for each in drawn)
        print(f"{name}: {total - sum(each[0] == name for each in alive)} of {total}")
    found_out = len(drawn) - len(alive)
    print(f"noticed {found_out} of {len(drawn)}: {found_out / len(drawn):.1%}")


if __name__ == "__main__":
    main()
