"""`doctor`: what is missing or broken in an installation, and the command that repairs it."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from tinylora_edge.version import __version__

from . import console
from . import options as opts

OK, NOTE, FAULT = "ok", "note", "fault"
_OURS = {"all", "dev"}  # extras that are not checked: one of all others, and that of developers
_REQUIREMENT = re.compile(r"(?P<package>[A-Za-z0-9._-]+).*;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)")
_ENGINES = {
    "llama": ("llama.cpp", "llama-cpp-python", "from tinylora_edge.runtime import llama; llama.probe()"),
    "onnx": ("ONNX Runtime", "onnxruntime", "import onnxruntime; onnxruntime.get_available_providers()"),
}
"""Extra -> name of the engine, its package, and code that loads its libraries."""


@dataclass(frozen=True)
class Finding:
    """What was checked, what was found, and the command that repairs it. A `note` need not be a fault."""

    check: str
    level: str
    text: str
    mend: str = ""


def doctor(as_json: opts.JsonOption = False) -> None:
    """Say what is missing or wrong in this installation, and the command that repairs it.

    doctor checks Python and the extras, and loads each engine in a separate process. The exit code is 1 if
    there is a fault. To check a bundle, use inspect.

    \b
    Example:
      tinylora-edge doctor
    """
    found = []
    for finding in look():
        found.append(finding)
        if not as_json:
            text = " ".join(finding.text.splitlines())
            console.say(f"{finding.level:<6}{finding.check:<8} {text}")
            if finding.mend:
                console.say(f"{'':<15}$ {finding.mend}")
    faults, notes = (sum(finding.level == level for finding in found) for level in (FAULT, NOTE))
    record = {"faults": faults, "notes": notes, "findings": [asdict(one) for one in found]}
    console.report(record, as_json, f"{console.counted(faults, 'fault')}, {console.counted(notes, 'note')}")
    if faults:
        raise typer.Exit(1)


def look() -> Iterator[Finding]:
    """Yield all findings."""
    runs = f"Python {platform.python_version()} ({platform.machine()}); {console.NAME} {__version__}"
    yield Finding("python", OK if sys.maxsize > 1 << 32 else FAULT, runs)
    yield from check_extras()
    engines = [check_engine(name) for name in _ENGINES]
    yield from engines
    if all(finding.level == NOTE for finding in engines):
        text = "no engine is installed: nothing can be run"
        yield Finding("engine", FAULT, text, _install_extra("llama"))


def check_extras() -> Iterator[Finding]:
    """Yield for each extra which of its packages are missing, not those of extras that it includes."""
    try:
        lines = metadata.requires(console.NAME) or []
    except metadata.PackageNotFoundError:
        text = f"{console.NAME} runs from {Path(__file__).parents[1]}, and is not installed"
        yield Finding("extra", FAULT, text, _install("-e", "."))
        return
    packages: dict[str, list[str]] = {}
    for line in lines:
        if match := _REQUIREMENT.match(line):
            packages.setdefault(match["extra"], []).append(match["package"])
    for extra in sorted(packages.keys() - _OURS):
        if missing := [name for name in sorted(packages[extra]) if not _is_installed(name)]:
            yield Finding("extra", NOTE, f"{extra} lacks {', '.join(missing)}", _install_extra(extra))
        else:
            yield Finding("extra", OK, f"{extra} is complete")


def check_engine(name: str) -> Finding:
    """Load an engine, `llama` or `onnx`, in a process of its own, and return what is found."""
    title, package, code = _ENGINES[name]
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Finding("engine", NOTE, f"{title} is not installed", _install_extra(name))
    title = f"{title} ({package} {version})"
    mend = _install("--force-reinstall", "--no-cache-dir", f"{package}=={version}")
    # An engine that was built for another processor ends the process that loads it. With -P, Python imports
    # nothing from the present folder.
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return Finding("engine", OK, f"{title} loads")
    if done.returncode < 0:
        number = -done.returncode
        why = ": it was built for another processor" if number == signal.SIGILL else ""
        text = f"{title} ends its process with signal {number} ({signal.strsignal(number)}){why}"
        return Finding("engine", FAULT, text, mend)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if name == "llama" and _is_installed("llama-cpp-py-sync"):  # without a compiler this extra is used
        mend = _install_extra("llama-wheel")
    return Finding("engine", FAULT, f"{title} fails: {last[:200]}", mend)


def _is_installed(package: str) -> bool:
    return any(metadata.Distribution.discover(name=package))


def _install_extra(extra: str) -> str:
    named = f"{console.NAME}[{extra}]"
    if extra != "llama-wheel":
        return _install(named)
    # pip must not cache these bindings without libraries, which it would use for the extra `llama` later.
    return f"SKBUILD_WHEEL_CMAKE=false {_install('--no-cache-dir', named)}"


def _install(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *words])
