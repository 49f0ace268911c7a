"""Tasks that need no download: prompts built from fixed word lists, the same for a seed everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from .word_tasks import BREVITY, LIST_LOOKUP, PLAIN_BREVITY, WORD_SUMS
from .words import GeneratedTask

TASKS: Mapping[str, GeneratedTask] = {
    task.name: task for task in (BREVITY, LIST_LOOKUP, PLAIN_BREVITY, WORD_SUMS)
}
"""The generated tasks by their names."""
