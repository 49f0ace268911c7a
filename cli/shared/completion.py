"""What a shell completes beside the names of files, which it knows itself: tasks, and models by name."""

from __future__ import annotations

import glob
from contextlib import suppress

from ...errors import TinyLoraError


def tasks(incomplete: str) -> list[tuple[str, str]]:
    """Return the built-in tasks that begin like that, each with what it asks for, and files of tasks."""
    from ...tasks.descriptions import DESCRIPTIONS

    found = [(name, text) for name, text in DESCRIPTIONS.items() if name.startswith(incomplete)]
    return found + [(path, "a file") for path in _files(incomplete, ".jsonl")]


def models(incomplete: str) -> list[tuple[str, str]]:
    """Return the models of the catalog that begin like that, each with its default size, and GGUF files."""
    from ...exporters.hub import load_catalog

    found = []
    with suppress(TinyLoraError, OSError):  # a broken catalog is told by the command, not while typing
        for model in load_catalog(None).values():
            if model.name.startswith(incomplete):
                found.append((model.name, f"{model.default}, {model.license or 'licence not stated'}"))
    return found + [(path, "a file") for path in _files(incomplete, ".gguf")]


def _files(incomplete: str, ending: str) -> list[str]:
    """Return files that begin like that; folders are left to the shell."""
    return sorted(glob.glob(f"{glob.escape(incomplete)}*{ending}")) if incomplete else []
