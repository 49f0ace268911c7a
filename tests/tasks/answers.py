"""Short ways to make samples and completions. Import as `import answers`."""

from __future__ import annotations

from typing import Any

from tinylora_edge.tasks import Completion, Sample


def completed(text: str, *, ended: bool = True) -> Completion:
    return Completion(text, ended, len(text.split()))


def question(text: str, answer: str | None = None, **data: Any) -> Sample:
    return Sample(({"role": "user", "content": text},), answer, data)


RIVER = question("What is a river? Answer in a few words.")

NOTHING = [
    "",
    " \n",
    "...",
    "River.",
    "Rivers.",
    "A river.",
    "The river's.",
    "It is the river.",
    "What is a river?",
    "What is a river? Answer in a few words.",
    "Sure! What is a river? Answer in a few words.",
]
LOOPS = ["water water water", "flowing water, flowing water, flowing water", "big " * 12]
