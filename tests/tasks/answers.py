"""Short ways to make samples and completions. Import as `import answers`."""

from __future__ import annotations

import re
from typing import Any

from tinylora_edge.tasks import Completion, Sample


def said(text: str, *, ended: bool = True) -> Completion:
    return Completion(text, ended, len(text.split()))


def asked(question: str, answer: str | None = None, **data: Any) -> Sample:
    return Sample(({"role": "user", "content": question},), answer, data)


def normalized(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.casefold()))


RIVER = asked("What is a river? Answer in a few words.")

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
