"""Results of the demo: one record for terminal, `--json` and report, and what it amounts to."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..shared.training import compared

PACKAGES = ("tinylora-edge", "llama-cpp-python", "torch", "transformers", "numpy")
"""Whose versions the report names: what computes in the demo."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The export, step 1.

    Attributes:
        seconds: that it took.
        modules: how many were exported.
        residual: the worst of any module.
        digest: the basis's.
        basis: the basis's short name.
    """

    seconds: float
    modules: int
    residual: float
    digest: str
    basis: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The training, step 3.

    Attributes:
        seconds: that it took, loading included.
        steps: that were made.
        best_step: whose vector was kept; 0 for the start.
        start_score, best_score: rewards on the prompts held back, at the start and of what was kept.
        stopped: why it ended.
        options: what the run was made with.
        curve: the metrics of every step and event.
    """

    seconds: float
    steps: int
    best_step: int
    start_score: float
    best_score: float
    stopped: str
    options: dict[str, Any]
    curve: list[dict[str, Any]]

    @property
    def validation(self) -> int:
        """Prompts held back from training to choose the best step by."""
        return int(self.options["settings"]["validation"])

    def summary(self) -> str:
        """Return which step's vector was kept, and why."""
        by = f"by the reward on {self.validation} prompts held back from training"
        end = "" if self.stopped == "done" else f" It ended early: {self.stopped}."
        if self.best_step == 0:
            return f"No step was better than the base {by} ({self.start_score:.3f}): the vector is zero.{end}"
        scores = f"{self.start_score:.3f} -> {self.best_score:.3f}"
        return f"The vector of step {self.best_step} is kept {by}: {scores}.{end}"


@dataclass(frozen=True, kw_only=True)
class Framed:
    """The frame, step 4.

    Attributes:
        hex: all of its bytes.
        bytes: how many they are.
        values: of the vector, float32 [n].
        parts: (hex, meaning) of the frame's fields in order.
    """

    hex: str
    bytes: int
    values: list[float]
    parts: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of steps 5 and 8: a load with the vector, one of a plain `Llama`, the median swap."""

    load: float
    plain_load: float
    swap: float
    swaps: int


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Figures of steps 2 and 6: mean rewards on the same prompts, and their paired comparison."""

    task: str
    n: int
    base: float
    base_standard_error: float
    vector: float
    vector_standard_error: float
    difference: float
    standard_error: float
    gained: int
    lost: int
    p: float

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures, labelled, for reading."""
        return [
            ("base", f"{self.base:.3f} +- {self.base_standard_error:.3f}"),
            ("with the vector", f"{self.vector:.3f} +- {self.vector_standard_error:.3f}"),
            *compared(self),
        ]

    def verdict(self) -> str:
        """Return what the figures say, and no more than that."""
        if abs(self.difference) <= 2 * self.standard_error or self.difference == 0:
            return (
                f"The difference is within two standard errors: these {self.n} prompts do not show that the "
                "vector helps, nor that it harms."
            )
        way = "raises" if self.difference > 0 else "lowers"
        return (
            f"The vector {way} the reward on prompts never trained on from {self.base:.3f} to "
            f"{self.vector:.3f}, by more than two standard errors."
        )


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """Figures of a prompt for the same task, on the same prompts, and of the vector over it.

    Attributes:
        text: the prompt, for reading.
        tokens: mean of a request with it; `base_tokens` of one without.
        tried, answers: prompts that it is the best of, on training prompts, and the answers that this took.
        prompt, prompt_standard_error: mean reward with it.
        difference, standard_error, gained, lost, p: the vector over it, paired.
    """

    text: str
    tokens: float
    base_tokens: float
    tried: int
    answers: int
    prompt: float
    prompt_standard_error: float
    difference: float
    standard_error: float
    gained: int
    lost: int
    p: float

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures, labelled, for reading."""
        over = f"{self.difference:+.3f} +- {self.standard_error:.3f}, paired, McNemar p = {self.p:.2g}"
        return [
            ("a prompt instead", f"{self.prompt:.3f} +- {self.prompt_standard_error:.3f}"),
            ("vector over it", over),
        ]

    def summary(self) -> str:
        """Return what the prompt is, how it was found, and what it costs."""
        return (
            f"The prompt is the best of {self.tried} on training prompts ({self.answers} answers; eval "
            f"--against best-prompt searches further): {self.text}. A request has {self.tokens:.0f} tokens "
            f"with it, and {self.base_tokens:.0f} with the vector."
        )


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """A held-out prompt of step 7, its greedy answers without and with the vector, and their rewards."""

    prompt: str
    base: str
    base_reward: float
    personalized: str
    personalized_reward: float


@dataclass(frozen=True, kw_only=True)
class ShownAnswers:
    """Answers that step 7 shows, chosen by rule.

    They are those to the first prompts, and of the others the first that differ.

    Attributes:
        first: whatever came.
        differing: no more than as many.
        changed: how many of all the held-out prompts have answers that differ.
        fixed: the first that the vector raises, asked for again by itself, as `run` does; None where there
            is none.
    """

    first: list[AnswerPair]
    differing: list[AnswerPair]
    changed: int
    fixed: AnswerPair | None = None

    def groups(self) -> list[tuple[str, list[AnswerPair]]]:
        """Return the answers under what they are; no group is empty."""
        groups = [(f"the first {len(self.first)} of these prompts, as they came", self.first)]
        if self.differing:
            title = f"the first {len(self.differing)} others of the {self.changed} whose answers differ"
            groups.append((title, self.differing))
        return groups


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The proof of step 8: how many logits were compared, and how far they are from a plain `Llama`'s."""

    logits: int
    prompts: int
    restored_bit_for_bit: bool
    restored_difference: float
    vector_difference: float

    def summary(self) -> str:
        """Return what was proved."""
        return (
            f"after clear() all {self.logits:,} logits of {self.prompts} prompts are those of a plain "
            "llama_cpp.Llama, bit for bit; with the vector they differed by up to "
            f"{self.vector_difference:.2f}."
        )


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The results of the whole demo, by step."""

    model: str
    quick: bool
    seed: int
    threads: int
    export: Exported
    training: Trained
    frame: Framed
    timing: Timings
    held_out: HeldOut
    prompted: Prompted
    answers: ShownAnswers
    proof: Proof
    versions: dict[str, str]
    seconds: float

    @property
    def zero(self) -> bool:
        """Whether training found nothing better than the base, so that the vector is zero."""
        return not any(self.frame.values)


def versions() -> dict[str, str]:
    """Return the versions of what computed: `PACKAGES`, Python and the machine."""
    found = {name: version(name) for name in PACKAGES}
    return found | {
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def duration(seconds: float) -> str:
    """Return a time for reading: `0.8 s`, `42 s`, `4 min 10 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
