"""Engines: whether each is installed, loads, and lets a tiny model answer, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .finding import FAULT, NOTE, OK, Finding, install

CHECK = "engine"

_SECONDS = 120
"""After which an engine that says nothing is given up: a tiny model takes two."""


@dataclass(frozen=True)
class _Engine:
    title: str
    package: str


_ENGINES = {  # by the name of the extra
    "llama": _Engine("llama.cpp", "llama-cpp-python"),
    "onnx": _Engine("ONNX Runtime", "onnxruntime"),
}


def check() -> Iterator[tuple[Finding, dict[str, Any]]]:
    """Yield a finding for each engine, and what its probe said: {} where it said nothing."""
    found = [probed(name) for name in _ENGINES]
    yield from found
    if all(finding.level == NOTE for finding, _ in found):
        text = "no engine is installed: nothing can be run"
        yield Finding(CHECK, FAULT, text, install("tinylora-edge[llama]")), {}


def probed(name: str) -> tuple[Finding, dict[str, Any]]:
    """Return what is found of an engine, and what its probe said: {} where it said nothing.

    Args:
        name: `llama` or `onnx`.
    """
    engine = _ENGINES[name]
    try:
        installed = version(engine.package)
    except PackageNotFoundError:
        text = f"{engine.title} is not installed"
        return Finding(CHECK, NOTE, text, install(f"tinylora-edge[{name}]")), {}
    title = f"{engine.title} ({engine.package} {installed})"
    mend = install(engine.package, options="--force-reinstall --no-cache-dir")
    try:
        done = subprocess.run(
            # -P: nothing that lies in the present folder is run
            [sys.executable, "-P", "-m", f"{__package__}.probe", name],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(CHECK, FAULT, f"{title} does not answer within {_SECONDS} s", mend), {}
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode).name
        why = ": it was built for another processor" if ended == "SIGILL" else ""
        return Finding(CHECK, FAULT, f"{title} ends its process with {ended}{why}", mend), {}
    said = _last(done.stdout)
    if "error" in said or "answered" not in said:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        why = str(said.get("error", lines[-1]))
        return Finding(CHECK, FAULT, f"{title} fails on a tiny model: {why[:200]}", mend), said
    text = f"{title} answers on a tiny model in {said['seconds']:.2f} s"
    return Finding(CHECK, OK, text), said


def _last(stdout: bytes) -> dict[str, Any]:
    try:
        found = json.loads(stdout.decode(errors="replace").strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}
