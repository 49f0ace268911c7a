"""Tasks that need no download: prompts built from fixed word lists, the same for a seed everywhere.

Training, held-out and shifted prompts are built from disjoint lists of words (`words`). The seed draws the
training prompts; the others are the same for every seed, so that runs can be compared. `TASKS` has a function
a task, which makes it from a seed, the number of training samples and that of held-out (and shifted) ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..task import Task
from .formats import formats
from .house_style import house_style
from .json_tasks import records, tool_calls
from .word_tasks import brevity, list_lookup, plain_brevity, word_sums

TASKS: Mapping[str, Callable[[int, int, int], Task]] = {
    "brevity": brevity,
    "formats": formats,
    "house-style": house_style,
    "list-lookup": list_lookup,
    "plain-brevity": plain_brevity,
    "records": records,
    "tool-calls": tool_calls,
    "word-sums": word_sums,
}
"""The generated tasks by their names."""
