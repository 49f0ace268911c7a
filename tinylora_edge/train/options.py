"""The options and the outcome of a training run: the same for every engine that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TrainError
from ..runtime.drift import Drift
from ..runtime.evaluation import Comparison, Evaluation, compare
from ..vector import FIRST_SEQUENCE
from .grpo import Loss
from .trainer import Result, TrainSettings

METHODS: tuple[str, ...] = ("grpo", "sft")
ROLLOUT_ENGINES: tuple[str, ...] = ("llama", "hf")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run, besides bundle and task.

    Attributes:
        method: `grpo`, or `sft` for cross-entropy on the task's answers.
        settings: of the loop.
        loss: of GRPO.
        samples: completions a prompt (GRPO).
        rollouts: `llama` (the deployed engine) or `hf` (`generate` of the model that learns).
        bf16_copy: draw with a bfloat16 copy of the deployed GGUF, which is closer to what learns; None
            does where that is faster (`bf16_is_faster`). The evaluation always uses the deployed file.
        weights: Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        dtype: of the weights that learn, `bf16` or `fp32`; None takes what the processor is fast at.
        workers: threads, a core each; None takes every core.
        sequences: that llama.cpp runs at the same time.
        wire: dtype of the frame that is written.
        sequence: of the frame.
        evaluate: measure base and vector on the held-out prompts at the end.
        drift: general prompts on which the vector's drift is measured then; 0 leaves it out.
    """

    method: str = "grpo"
    settings: TrainSettings = field(default_factory=TrainSettings)
    loss: Loss = field(default_factory=Loss)
    samples: int = 8
    rollouts: str = "llama"
    bf16_copy: bool | None = None
    weights: str | None = None
    dtype: str | None = None
    workers: int | None = None
    sequences: int = 32
    wire: str = "fp32"
    sequence: int = FIRST_SEQUENCE
    evaluate: bool = True
    drift: int = 32

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, METHODS),
            ("rollout engine", self.rollouts, ROLLOUT_ENGINES),
        ):
            if value not in known:
                raise TrainError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        if self.drift < 0:
            raise TrainError(f"drift is measured on 0 general prompts or more, not on {self.drift}")
        if not 0 <= self.settings.anchor < math.inf:
            raise TrainError(f"an anchor weighs at least 0 a nat, not {self.settings.anchor}")


@dataclass(frozen=True, repr=False)
class Outcome:
    """The outcome of a run.

    Attributes:
        path: the frame file; its manifest lies beside it as `<name>.json`.
        result: of the loop.
        base, personalized: on the held-out prompts; None where not evaluated.
        drift: of the vector on general prompts; None where it was not measured.
    """

    path: Path
    result: Result
    base: Evaluation | None
    personalized: Evaluation | None
    drift: Drift | None = None

    def __repr__(self) -> str:
        held_out = "not evaluated"
        if self.base is not None and self.personalized is not None:
            held_out = f"held out {self.base.mean:.4f} -> {self.personalized.mean:.4f}, n = {self.base.n}"
        return f"Outcome({str(self.path)!r}, {self.result.stopped} at step {self.result.steps}, {held_out})"

    @property
    def comparison(self) -> Comparison | None:
        """The paired comparison of base and vector; None where they were not evaluated."""
        if self.base is None or self.personalized is None:
            return None
        return compare(self.base, self.personalized)
