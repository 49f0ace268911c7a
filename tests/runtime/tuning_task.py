"""What the tests of tuning learn: prompts, and a reward that any tiny model can raise."""

from __future__ import annotations

from tinylora_edge.tasks import Completion, Sample

PROMPTS = [f"prompt {word}" for word in "abcdefghijklmnopqrstuvwxyz"]


def favoured(completion: Completion, sample: Sample) -> float:
    return sum(ord(c) % 7 < 3 for c in completion.text) / max(len(completion.text), 1)
