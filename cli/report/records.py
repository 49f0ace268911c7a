"""Records of a training run, as its report shows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..figures import compared

if TYPE_CHECKING:
    from ...runtime import PromptSearch
    from ...runtime.evaluation import Comparison
    from ...tasks import Preamble


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training.

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
            given = self.options.get("start") is not None
            start, kept = ("the start", "the one that training began with") if given else ("the base", "zero")
            return (
                f"No step was better than {start} {by} ({self.start_score:.3f}): the vector is {kept}.{end}"
            )
        scores = f"{self.start_score:.3f} -> {self.best_score:.3f}"
        return f"The vector of step {self.best_step} is kept {by}: {scores}.{end}"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Figures of base and vector: mean rewards on the same held-out prompts, and their paired comparison."""

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
            ("difference", compared(self)),
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

    @classmethod
    def of(cls, found: PromptSearch, comparison: Comparison) -> Prompted:
        """Return the figures of a search that was measured on the held-out prompts.

        Args:
            found: the search, with its `held_out`.
            comparison: of the prompt's answers and the vector's, to those.
        """
        assert found.held_out is not None
        plain = next(trial for trial in found.trials if not trial.preamble)
        return cls(
            text=_text(found.best.preamble),
            tokens=found.best.prompt_tokens,
            base_tokens=plain.prompt_tokens,
            tried=len(found.trials),
            answers=found.answers,
            prompt=found.held_out.mean,
            prompt_standard_error=found.held_out.standard_error,
            **asdict(comparison),
        )

    def summary(self) -> str:
        """Return what the prompt is, how it was found, and what it costs."""
        return (
            f"The prompt is the best of {self.tried} on training prompts ({self.answers} answers; eval "
            f"--against best-prompt searches further): {self.text}. A request has {self.tokens:.0f} tokens "
            f"with it, and {self.base_tokens:.0f} with the vector."
        )


def _text(preamble: Preamble) -> str:
    """Return a preamble for reading: a system prompt, cut where it is long, and the first example."""
    parts = [] if preamble.system is None else [repr(" ".join(preamble.system.split())[:160])]
    if preamble.examples:
        parts.append(f"{len(preamble.examples)} worked examples, the first {preamble.examples[0].text!r}")
    return " and ".join(parts) or "none, since no prompt did better"


def duration(seconds: float) -> str:
    """Return a time for reading: `0.8 s`, `42 s`, `4 min 10 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
