"""Sites of mutants: what of a module may be changed, how, and which lines run it."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
_SILENT = ("__repr__", "_shown", "_repr_html_")


@dataclass(frozen=True)
class Site:
    """A place where a module may be changed.

    Attributes:
        kind: comparison, operator, constant, condition, raise or return.
        line: in the file.
        name: what stays when lines move: the function, its statement, and what of that is changed.
        lines: of the statement; empty where it runs when the module is imported.
    """

    kind: str
    line: int
    name: str
    lines: range


def sites(tree: ast.Module) -> list[Site]:
    """Return every site of a module, in an order that stays."""
    owners = {
        id(inner): statement
        for statement in ast.walk(tree)
        if isinstance(statement, ast.stmt)
        for inner in _own(statement)
    }
    functions = {
        id(statement): each.name
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef)
        for one in each.body
        for statement in ast.walk(one)
    }
    found, times = [], Counter[str]()
    for node, kind in _changeable(tree):
        statement = owners[id(node)]
        function = functions.get(id(statement), "")
        first, text = getattr(statement, "lineno", 0), ast.unparse(statement).splitlines()[0]
        last = max((getattr(inner, "end_lineno", 0) for inner in _own(statement)), default=first)
        changed = f"{kind} {ast.unparse(node).splitlines()[0][:50]}"
        lines = range(first, last + 1) if function else range(0)
        name = f"{function or 'import'}: {text[:90]} [{changed}]"
        times[name] += 1
        name += f" #{times[name]}" if times[name] > 1 else ""
        found.append(Site(kind, node.lineno, name, lines))
    return found


def mutant(tree: ast.Module, number: int) -> ast.Module:
    """Return a copy of a module with one site changed."""
    changed = copy.deepcopy(tree)
    node, kind = list(_changeable(changed))[number]
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
    return ast.fix_missing_locations(changed)


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield a statement and what is in it, without the statements that it holds."""
    yield statement
    left = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    while left:
        node = left.pop()
        yield node
        left += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]


def _changeable(tree: ast.Module) -> Iterator[tuple[Any, str]]:
    skipped: set[int] = set()
    for node in ast.walk(tree):
        inside: list[ast.AST | None] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            inside = [*node.exc.args, *node.exc.keywords]  # a message
        elif isinstance(node, ast.JoinedStr | ast.Assert) or getattr(node, "name", "") in _SILENT:
            inside = list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.FunctionDef):
            inside = [node.returns, *(each.annotation for each in node.args.args + node.args.kwonlyargs)]
            inside += node.decorator_list
        elif isinstance(node, ast.ClassDef):
            inside = list(node.decorator_list)
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
