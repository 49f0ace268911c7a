"""The generated tasks as `load_task` returns them, made once."""

from __future__ import annotations

import pytest

from tinylora_edge.tasks import Task, load_task
from tinylora_edge.tasks.generated import TASKS


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    return {name: load_task(name) for name in TASKS}
