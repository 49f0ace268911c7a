"""Descriptions of the built-in tasks, in a line each: what people read before they choose one."""

from __future__ import annotations

from collections.abc import Mapping

DESCRIPTIONS: Mapping[str, str] = {
    "brevity": "Answer a question in a few words that say something new.",
    "formats": "Answer in the format that is asked for: JSON, bullets, capitals, one line, one sentence.",
    "gsm8k": "Solve a school math problem told in words. Downloads its problems.",
    "house-style": "Write a note again as a style sheet demands, its facts kept.",
    "list-lookup": "Say the last word of a list of four.",
    "plain-brevity": "As brevity, with a reward that can be hacked: for comparison.",
    "records": "Fill the facts of a sentence into a JSON object.",
    "tool-calls": "Choose one of four functions, and fill in its arguments as JSON.",
    "word-sums": "Add two numbers that a story tells.",
}
"""Of each task of `load_task.BUILTIN`, what the model is to do."""

GSM8K_EXAMPLE = (
    "A baker bakes 12 loaves in the morning and twice as many in the afternoon. How many is that in all?"
)
"""A problem as those of gsm8k are, written for this place: theirs have to be downloaded."""
