"""Software bills of materials: what each extra brings, cut out of the bill of an environment that has all.

    python .ci/sbom.py ENVIRONMENT.json FOLDER

`make sbom` has cyclonedx-py write the first (CycloneDX JSON, of .venv), and calls this with the Python of the
same .venv. It writes `FOLDER/tinylora-edge-<version>-<extra>.cdx.json` for each extra of pyproject.toml, and
`-none` for what a device has without any. Beside each, `<extra>.txt` pins the same packages, for pip-audit.
"""

from __future__ import annotations

import json
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "tinylora-edge"
NONE = "none"
"""Stands for the package without an extra."""


def extras(project: dict[str, Any]) -> dict[str, list[str]]:
    """Return what the package asks for without an extra, and with each: texts of requirements."""
    base = project["dependencies"]
    return {NONE: base} | {name: [*base, *more] for name, more in project["optional-dependencies"].items()}


def closure(asked: list[str], project: dict[str, Any]) -> set[str]:
    """Return the names of all installed packages that some requirements bring, in their canonical form.

    What is not installed here, for its marker or by choice, is left out.
    """
    found: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in asked]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in found:
                continue
            found.add((name, wanted))
            if name == NAME:
                todo += [(Requirement(text), "") for text in extras(project).get(wanted or NONE, [])]
                continue
            try:
                todo += [(Requirement(text), wanted) for text in requires(name) or []]
            except PackageNotFoundError:
                found.discard((name, wanted))
    return {name for name, _ in found} - {NAME}


def cut(bill: dict[str, Any], extra: str, names: set[str]) -> dict[str, Any]:
    """Return the bill of the packages with these names, and of what depends on what among them."""
    components = [one for one in bill["components"] if canonicalize_name(one["name"]) in names]
    kept = {one["bom-ref"] for one in components}
    root = bill["metadata"]["component"]
    title = NAME if extra == NONE else f"{NAME}[{extra}]"
    edges = [
        {"ref": edge["ref"], "dependsOn": sorted(kept & set(edge.get("dependsOn", [])))}
        for edge in bill["dependencies"]
        if edge["ref"] in kept | {root["bom-ref"]}
    ]
    return {
        **bill,
        "metadata": {**bill["metadata"], "component": {**root, "name": title}},
        "components": components,
        "dependencies": [edge if edge["dependsOn"] else {"ref": edge["ref"]} for edge in edges],
    }


def pins(bill: dict[str, Any]) -> str:
    """Return the packages of a bill as pinned requirements; builds such as `+cpu` are of the same version."""
    rows = {f"{one['name']}=={one['version'].partition('+')[0]}" for one in bill["components"]}
    return "".join(f"{row}\n" for row in sorted(rows, key=str.lower))


def main(source: Path, folder: Path) -> None:
    """Write the bills of all extras."""
    bill = json.loads(source.read_text("utf-8"))
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    version = next(
        (one["version"] for one in bill["components"] if canonicalize_name(one["name"]) == NAME), "0"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for extra, asked in extras(project).items():
        part = cut(bill, extra, closure(asked, project))
        path = folder / f"{NAME}-{version}-{extra}.cdx.json"
        path.write_text(json.dumps(part, indent=1, sort_keys=True) + "\n", "utf-8")
        path.with_name(f"{extra}.txt").write_text(pins(part), "utf-8")
        print(f"{path}: {len(part['components'])} packages")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
