"""The shipped tasks of our own as `load_task` returns them, made once; and files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge.tasks import Task, load_task


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    return {name: load_task(name) for name in ("brevity", "list-lookup")}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of lines: objects become JSON, text and bytes stay as they are."""

    def write(*lines: Any, name: str = "own.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(_bytes(line) + b"\n" for line in lines))
        return path

    return write


def _bytes(line: Any) -> bytes:
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line)).encode()
