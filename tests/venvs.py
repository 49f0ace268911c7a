"""Environments with some of the installed packages, and no others: what a user has, without a network."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from packaging.requirements import Requirement


def closure(requirement: str, wheel: Path | None = None) -> dict[str, metadata.Distribution]:
    """The installed distributions that a requirement asks for, and what these ask for, by name.

    What the package itself asks for is read from the wheel, where one is given.
    """
    found: dict[str, metadata.Distribution] = {}
    todo, seen = [Requirement(requirement)], set()
    while todo:
        one = todo.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        own = wheel if name == "tinylora-edge" else None
        package = found[name] = _described(own) if own else metadata.distribution(one.name)
        for text in package.requires or ():
            wanted = Requirement(text)
            extras = one.extras or {""}
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(wanted)
    return found


def _described(wheel: Path) -> metadata.Distribution:
    """A wheel's distribution, unpacked nowhere."""
    name = "-".join(wheel.name.split("-")[:2])
    return metadata.PathDistribution(zipfile.Path(wheel, f"{name}.dist-info/"))  # type: ignore[arg-type]


def linked(folder: Path, requirement: str, wheel: Path | None = None) -> Path:
    """Make an environment with the packages of a requirement of this one; return its interpreter.

    They are linked from here, as fast as that is. The package itself is left out, or installed from a wheel.
    """
    venv.create(folder, symlinks=os.name != "nt")
    (site,) = folder.glob("lib/python*/site-packages")
    for name, package in closure(requirement, wheel).items():
        if name == "tinylora-edge":
            continue
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            source, target = Path(str(package.locate_file(top))), site / top
            if source.exists() and not target.exists():
                target.symlink_to(source)
    python = folder / "bin" / "python"
    if wheel is not None:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def run(python: Path, *arguments: object) -> str:
    """What a program prints there, without the settings of this environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
