"""The recipe of the vector that is shipped: how it came about, what was measured, and what it fixes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....documents import read_json
from ....errors import TrustError
from ...report.records import HeldOut


@dataclass(frozen=True, kw_only=True)
class BestPrompt:
    """The best prompt that was found for the same task, on the same held-out prompts.

    Attributes:
        tried: prompts that it is the best of, on training prompts.
        score, standard_error: mean reward with it.
        tokens: mean of a request with it; `base_tokens` of one without, and of one with the vector.
    """

    tried: int
    score: float
    standard_error: float
    tokens: float
    base_tokens: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The record beside the vector.

    Attributes:
        task: that the vector was trained on.
        training: method, seed, settings, versions, and the command that trains it again.
        held_out: what base and vector were measured to do.
        prompt: what the best prompt does.
        prompts: those of the held-out prompts that are shown: the base fails on them, the vector does not.
    """

    task: str
    training: dict[str, Any]
    held_out: HeldOut
    prompt: BestPrompt
    prompts: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Return the recipe in a file.

        Raises:
            OSError: it cannot be read.
            TrustError: it is no recipe.
        """
        try:
            found = read_json(path)
            return cls(
                task=str(found["task"]),
                training=dict(found["training"]),
                held_out=HeldOut(**found["held_out"]),
                prompt=BestPrompt(**found["prompt"]),
                prompts=tuple(one["prompt"] for one in found["fixed"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise TrustError(f"{path} is no recipe ({error!r:.80}): install tinylora-edge again") from None

    def summary(self) -> str:
        """Return what was measured, with the prompt beside it."""
        held, settings = self.held_out, self.training["settings"]
        return (
            f"Measured when it was made, on all {held.n} held-out prompts: base {held.base:.2f} +- "
            f"{held.base_standard_error:.2f}, vector {held.vector:.2f} +- {held.vector_standard_error:.2f} "
            f"({held.gained} prompts gained, {held.lost} lost; GRPO, {settings['steps']} steps, seed "
            f"{settings['seed']}, one run)."
        )

    def contrast(self) -> str:
        """Return what a prompt does instead, and what it costs."""
        prompt = self.prompt
        return (
            f"A prompt can do more here: the best of {prompt.tried} that were searched has "
            f"{prompt.score:.2f} +- {prompt.standard_error:.2f}, for {prompt.tokens:.0f} tokens a request "
            f"where the vector has {prompt.base_tokens:.0f}, and the same for every user."
        )
