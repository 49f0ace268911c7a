"""Writes docs/reference/api.md: what is public, each with its signature and the first words on it.

python docs/site/api.py            # writes the page; a test compares it, so that no signature changes unseen
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[1] / "reference" / "api.md"
FACES = ("", ".runtime", ".train", ".tasks", ".eval", ".exporters", ".shipping", ".serve")
SINGLE = "tinylora_edge.projection.project", "tinylora_edge.factorization.truncated_svd"
WIDE = 100  # characters of a line of code

HEAD = """# Python

What apps import. Everything else is the package's own, and may change in any release
([Versions](../VERSIONS.md)). `help(NAME)` has arguments, units and errors. The page is written by
`python docs/site/api.py`.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for face in FACES:
        module = import_module(f"tinylora_edge{face}")
        parts.append(f"## {module.__name__}\n\n{first(module)}\n")
        named = [(name, getattr(module, name)) for name in module.__all__]
        errors = [each for each in named if isinstance(each[1], type) and issubclass(each[1], BaseException)]
        for name, value in named:
            if (name, value) not in errors:
                parts += entry(name, value)
        if errors and not face:
            parts.append("### Errors and warnings\n")
            parts.append(
                "\n".join(f"- `{name}({value.__base__.__name__})`: {first(value)}" for name, value in errors)
                + "\n"
            )
    for path in SINGLE:
        module_name, _, name = path.rpartition(".")
        module = import_module(module_name)
        parts.append(f"## {module_name}\n\n{first(module)}\n")
        parts += entry(name, getattr(module, name))
    return "\n".join(parts)


def entry(name: str, value: Any) -> Iterator[str]:
    """Yield what is said of one name."""
    yield f"### {name}\n"
    if isinstance(value, type) or callable(value):
        kind = "class " if isinstance(value, type) else ""
        yield f"```python\n{folded(f'{kind}{name}{signature(value)}')}\n```\n\n{first(value)}\n"
    elif isinstance(value, ModuleType):
        yield f"A module: {first(value)}\n"
    else:
        yield f"`{type(value).__name__}`\n"
    if isinstance(value, type) and (found := [*members(value)]):
        yield "\n".join(f"- `{spelled}`: {about}" for spelled, about in found) + "\n"


def members(value: type) -> Iterator[tuple[str, str]]:
    """Yield the public methods and properties of a class, with their first sentence."""
    bases = [base for base in value.__mro__ if base.__module__.startswith("tinylora_edge")]
    names = dict.fromkeys(name for base in bases for name in vars(base) if not name.startswith("_"))
    for name in names:
        found = inspect.getattr_static(value, name)
        made = getattr(found, "__func__", found)
        if isinstance(found, property) or type(found).__name__ == "cached_property":
            yield name, first(found)
        elif inspect.isfunction(made) and inspect.getdoc(made):
            spelled = signature(getattr(value, name))
            yield f"{name}{re.sub(r'^.self(, )?', '(', spelled)}", first(made)


def signature(value: Any) -> str:
    """Return a signature as it is written, on one line; a default that has no text of its own is `...`."""
    try:
        text = str(inspect.signature(value))
    except ValueError:
        return ""
    text = re.sub(r"<[^<>]*(?:<[^<>]*>)?[^<>]*>", "...", text)
    text = re.sub(r"(: |-> )(?:'([^']*)'|\"([^\"]*)\")", lambda m: m[1] + (m[2] or m[3]), text)
    return text.removesuffix(" -> None") if isinstance(value, type) else text


def folded(text: str) -> str:
    """Return a signature with a line for each parameter, where it is longer than a line."""
    begin, _, rest = text.partition("(")
    inner, _, end = rest.rpartition(")")
    if len(text) <= WIDE:
        return text
    parts, depth = [""], 0
    for letter in inner:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    lines = "".join(f"    {part.strip()},\n" for part in parts)
    return f"{begin}(\n{lines}){end}"


def first(value: Any) -> str:
    """Return the first paragraph of what an object says of itself."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.exit(0)
