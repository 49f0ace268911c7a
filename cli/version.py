"""The version of this program, and those of the engines, asked of their packages without importing them."""

from __future__ import annotations

import platform
from importlib import metadata

from ..system import __version__
from . import console

ENGINES = {"llama-cpp-python": "llama", "onnxruntime": "onnx", "onnxruntime-genai": "onnx"}
"""Distributions of engines, and the extra that installs each."""


def print_version() -> None:
    """Print what runs: this program, Python, and each engine or how it is installed."""
    console.say(f"tinylora-edge {__version__}")
    rows = [("Python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")]
    for name, extra in ENGINES.items():
        rows.append((name, installed(name) or f'not installed: pip install "tinylora-edge[{extra}]"'))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.say(f"  {name:<{width}}  {value}")


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
