"""Candidates: system prompts and worked examples that a search for the best prompt of a task begins with.

`<task>.jsonl` beside this file has those of a built-in task (see `_files` for its lines). They are written as
someone would who knows the task's reward and may not train: what a vector is compared with has to be good.
"""

from ._examples import draw_examples, validation_prompts
from ._files import Candidates, any_candidates, has_candidates, load_candidates, shipped_candidates

__all__ = [
    "Candidates",
    "any_candidates",
    "draw_examples",
    "has_candidates",
    "load_candidates",
    "shipped_candidates",
    "validation_prompts",
]
