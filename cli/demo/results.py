"""Results of the demo: one record for terminal, `--json` and report, and what it amounts to."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

from ..report.records import HeldOut, Prompted, Trained

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
        axes: names of the values; none where they have no names.
    """

    seconds: float
    modules: int
    residual: float
    digest: str
    basis: str
    axes: list[str]


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
