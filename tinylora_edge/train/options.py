"""The options and the outcome of a training run: the same for every engine that trains."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..basis import Bases, Basis
from ..errors import TrainError
from ..factors import Shape, shape_name
from ..jsonio import write_json
from ..tasks import Sample, Task
from ..tasks.files import rank
from ..vector import FIRST_SEQUENCE, LAST_SEQUENCE, MicroVector
from ..version import __version__
from ..wire.tags import Verifier
from ..wire.values import BITS
from ..writes import atomic_write

METHODS: tuple[str, ...] = ("sft", "grpo")

MINUTES = 5.0
"""Minutes of training where neither steps nor minutes are given."""

_FEWEST = 20
"""Fewest examples of a task: some choose the vector, and the others are learned from."""

Q4_FROM = 4
"""Outputs of R from which on entries are written in q4: with fewer, scales take the bytes that it saves."""

_INT8_FROM = 64
"""Numbers from which on a frame is int8, and not bf16: it saves more bytes than its scale takes.

One scale for all n numbers changes R by about a hundredth of its norm, which changed no answer in tests.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run, besides bundle and task.

    Attributes:
        method: `sft` for cross-entropy on the task's answers, or `grpo`. None chooses: `sft` where every
            training sample has an answer, and with what that leaves of the budget `grpo`, where sampled
            answers differ in their reward.
        steps: most steps. Two runs of as many steps are the same, unless minutes end them.
        minutes: most minutes of training and its validations. A step that would pass them is not begun, and a
            step that still runs at 1.25 times the minutes is given up. 5 where neither steps nor minutes are
            given. The step size falls over the steps, or without them over the minutes.
        prompts: training prompts of a step.
        samples: completions of each prompt (GRPO).
        rank: k or (p, q), to train all entries of R of this shape.
        numbers: how many numbers to train, in the bundle's learned projection of that size, or else in the
            paper's random one. Without rank and numbers it is the `large` one of the bundle's factors.
        lr: step size of Adam in the coordinates of `learner.whitened`; it falls linearly to a tenth. None
            takes `trainer.default_lr`.
        validation: prompts held back from training to choose the vector by, at least 2. None takes a fifth of
            the training samples, 8 to 48.
        validate_every: steps between validations. Where `steps` is not given, a validation also waits until
            the steps since the last one took twice as long as that one did.
        checkpoint_every: steps between checkpoints.
        keep: rehearse: the loss includes KL(base || v) on the base's own answers to general prompts. None
            rehearses in SFT alone.
        seed: of everything that is random.
        start: values that training starts from, as many as the basis has (`grown` makes them of a smaller
            vector); None is the base.
        under: the frame of a shared vector that stays active, unchanged, beneath the one that is trained.
            Answers are drawn and measured with both; the frame that is written holds the trained one alone.
        whitening: the bytes of the file beside it (`texts.make_whitening`), for texts without prompts. None
            takes the texts themselves.
        keys: one of these has to verify `under`; without any, a checksum is enough.
        weights: GGUF or Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        dtype: of the weights in training: `bf16`, or `fp32` of twice the memory; None takes the one
            that is faster here.
        frame_dtype: of the frame that is written. None is `q4` for entries of R of 4 outputs or more (not
            with TRL), else `int8` from 64 numbers on, else `bf16`. With `q2` and `q4`, for entries alone,
            validation uses rounded values, and so does training in its last third, or once nothing gets
            better.
        workers: threads, a core each; None takes every core.
        sequence: of the frame that is written; higher than that of the vector that it replaces.
        evaluate: measure the vector at the end (`eval.measure`).
    """

    method: str | None = None
    steps: int | None = None
    minutes: float | None = None
    prompts: int = 8
    samples: int = 8
    rank: int | Shape | None = None
    numbers: int | None = None
    lr: float | None = None
    validation: int | None = None
    validate_every: int = 5
    checkpoint_every: int = 5
    keep: bool | None = None
    seed: int = 0
    start: tuple[float, ...] | None = None
    under: bytes | None = None
    whitening: bytes | None = None
    keys: Sequence[Verifier] = ()
    weights: str | None = None
    dtype: str | None = None
    frame_dtype: str | None = None
    workers: int | None = None
    sequence: int = FIRST_SEQUENCE
    evaluate: bool = True

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise TrainError(f"unknown method {self.method!r}: choose one of {', '.join(METHODS)}")
        counts = "steps", "prompts", "samples", "validate_every", "checkpoint_every", "workers"
        for name, least in (*((name, 1) for name in counts), ("seed", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise TrainError(f"{name} is {value}, expected at least {least}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise TrainError(f"training takes more than 0 minutes, not {self.minutes}")
        if self.lr is not None and not 0 < self.lr <= 1e6:  # far within float32
            raise TrainError(f"a step size is more than 0 and at most 1e6, not {self.lr}")
        if not 0 <= self.sequence <= LAST_SEQUENCE:
            raise TrainError(
                f"sequence {self.sequence} is none of 0 to {LAST_SEQUENCE}: after the last a user goes on "
                "under another name"
            )

    def basis(self, bases: Bases) -> Basis:
        """Return the basis that a run trains in. BasisError: none has its rank or numbers."""
        rank = self.rank
        if rank is None and self.numbers is None:
            rank = bases.factors.sizes["large"]
        basis = bases.basis(numbers=self.numbers, rank=rank)
        if self.frame_dtype in BITS and not basis.entries:
            raise TrainError(
                f"{self.frame_dtype} is for all entries of R, which these {basis.size} numbers are not: "
                "choose a rank, or leave the dtype out"
            )
        return basis

    def rehearses(self, method: str | None) -> bool:
        """Return whether the loss of a method pulls v towards the base."""
        return method == "sft" if self.keep is None else self.keep

    def framed(self, vector: MicroVector, basis: Basis) -> MicroVector:
        """Return a vector of this basis with the dtype and the sequence of its frame."""
        dtype = self.frame_dtype or ("int8" if basis.size >= _INT8_FROM else "bf16")
        return replace(vector, dtype=dtype, sequence=self.sequence, entries=basis.entries)

    def split(self, task: Task) -> tuple[list[Sample], list[Sample]]:
        """Return the samples that choose the vector, and the samples to learn from.

        The choice depends on the prompts alone and not on their order, since data are often sorted by answer.

        TrainError: there are too few.
        """
        count, held = len(task.train), self.validation
        if held is None:
            if count < _FEWEST:
                raise TrainError(
                    f"task {task.name} has {count} examples to train on, and at least {_FEWEST} are needed: "
                    "some to learn from, and 8 to choose the vector by. Add more"
                )
            held = max(8, min(48, count // 5))
        if held < 2:
            raise TrainError(f"{held} prompts for validation: at least 2 are needed to tell luck from gain")
        ranks = [rank(sample) for sample in task.train]
        last = max(sorted(ranks)[:held], default=0.0)
        chosen = {index for index in range(count) if ranks[index] <= last}  # all samples of a prompt
        if count < (held := max(held, len(chosen))) + self.prompts:
            raise TrainError(
                f"task {task.name} has {count} training prompts, but {held} for validation and "
                f"{self.prompts} a step are needed: add prompts, or lower those settings"
            )
        return (
            [task.train[index] for index in sorted(chosen)],
            [sample for index, sample in enumerate(task.train) if index not in chosen],
        )

    def record(self) -> dict[str, Any]:
        """Return the options as JSON, with SHA-256 in place of bytes and of a start's values, and ids in
        place of keys."""
        values = np.array(self.start or (), "<f4").tobytes()
        data = {"start": values, "under": self.under, "whitening": self.whitening}
        hashed = {name: hashlib.sha256(each).hexdigest() if each else None for name, each in data.items()}
        return vars(self) | hashed | {"keys": [key.id for key in self.keys]}


def grown(vector: MicroVector, bases: Bases, basis: Basis) -> tuple[float, ...]:
    """Return the values in `basis` that give exactly the R of a vector of another basis of the same factors.

    All entries of R can take over any vector whose R is a corner of it.

    Raises:
        TrainError: no values of `basis` give that R.
        BasisMismatchError, VectorError: the vector is of none of the bases.
    """
    source = bases.of(vector)
    if source.digest == basis.digest:
        return tuple(vector.values.tolist())
    corner, own = (np.s_[:, : shape[0], : shape[1]] for shape in (source.shape, basis.shape))
    whole = np.zeros((len(basis.modules), *np.maximum(source.shape, basis.shape)), np.float32)
    whole[corner] = source.R(vector)
    values = basis.projection.adjoint(whole[own]).astype(np.float32)
    found = np.zeros_like(whole)
    found[own] = basis.R(values)
    if not np.array_equal(found, whole):
        raise TrainError(
            f"{basis.size} numbers cannot hold a vector of {source.size} others: go on with all entries of "
            f"its rank, --rank {shape_name(source.shape)}, or of a higher one"
        )
    return tuple(values.tolist())


@dataclass(frozen=True)
class Phase:
    """One method's part of a run.

    Attributes:
        start_score, best_score: mean validation reward of its start, and of the vector that it found.
        start_loss, best_loss: nats a token of the validation answers under the same (SFT).
        best_step: the step that the vector is from; 0 where none was better than the start.
        steps, seconds: steps done, and the seconds that they took with their validations.
        stopped: why it ended: `done`, `patience`, `silence`, `no signal`, or `interrupted`; `left out` where
            it did not begin.
        temperature: at which answers were drawn (GRPO).
        why: why it was left out, or found nothing better.
        gaining: the budget ended it, and its last validation was the best.
    """

    method: str
    start_score: float
    best_score: float
    start_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    steps: int = 0
    seconds: float = 0.0
    stopped: str = "left out"
    temperature: float | None = None
    why: str | None = None
    gaining: bool = False


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        vector: the last one whose validation was the highest so far, or within one standard error of it; the
            start where nothing was better.
        phases: one for each method, in order. Each begins with the vector that the one before found.
    """

    vector: MicroVector
    phases: tuple[Phase, ...]

    @property
    def start_score(self) -> float:
        """Validation reward of the start."""
        return self.phases[0].start_score

    @property
    def best_score(self) -> float:
        """Validation reward of `vector`."""
        return self.phases[-1].best_score

    @property
    def best_step(self) -> int:
        """The step that `vector` is from, counted over all phases; 0 for the start."""
        best = done = 0
        for phase in self.phases:
            best = done + phase.best_step if phase.best_step else best
            done += phase.steps
        return best

    @property
    def steps(self) -> int:
        """Steps done in all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Seconds that these steps took, with their validations."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def stopped(self) -> str:
        """Why the last phase ended (see `Phase`)."""
        return next(phase.stopped for phase in reversed(self.phases) if phase.stopped != "left out")

    def record(self) -> dict[str, Any]:
        """Return the result as the record beside the vector has it."""
        names = "start_score", "best_score", "best_step", "steps", "stopped"
        return {name: getattr(self, name) for name in names} | {"phases": [*map(asdict, self.phases)]}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        path: the frame file, with its manifest beside it as `<name>.json`; for an interrupted run the folder
            with its checkpoints.
        result: of training.
        measured: the measured figures, as the manifest has them.
    """

    path: Path
    result: Result
    measured: Mapping[str, Any] = field(default_factory=dict, repr=False)


def write_result(
    vector: MicroVector,
    basis: Basis,
    task: Task,
    options: Options,
    outcome: Outcome,
    curve: list[dict[str, Any]],
    **more: Any,
) -> None:
    """Write the manifest, with the keys of `more`, and then the frame: no frame is without its manifest."""
    manifest: dict[str, Any] = {
        "tool": f"tinylora-edge {__version__}",
        "task": task.name,
        **({} if task.preamble is None else {"preamble": task.preamble}),
        **({} if task.schema is None else {"schema": task.schema}),
        "basis": basis.digest,
        "projection": basis.projection.descriptor,
        "numbers": basis.size,
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "options": options.record(),
        **more,
        "result": outcome.result.record(),
        "seconds": round(outcome.result.seconds, 1),
        "curve": curve,
        **outcome.measured,
    }
    output = outcome.path
    write_json(output.with_name(f"{output.name}.json"), manifest)
    with atomic_write(output) as file:
        file.write(vector.to_bytes(basis))
