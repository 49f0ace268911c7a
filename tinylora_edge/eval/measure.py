"""What a vector is worth in the deployed engine: scores on held-out prompts, paired, with errors and a test.

And the best few-shot prompt beside it, and the record of what a run measures.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TinyLoraError, TrainError, VectorError
from ..runtime.batch import Batch, Stopped
from ..runtime.learning.state import Report, standard_error
from ..runtime.model import PersonalizedModel
from ..tasks import Preamble, Sample, Task, draw_examples
from ..tasks.rewards import is_text, json_value, label
from ..vector import MicroVector
from .drift import measure_drift


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The rewards of a vector on a list of prompts.

    Attributes:
        scores: float64 [n], in the order of the prompts. Of a task whose reward is `text`: minus the nats a
            token of the given answer, with its end.
        answers: the texts; empty ones where given answers are measured.
        partial: the mean with credit for coming near (`Task.shaped`); None where the task has none.
    """

    scores: NDArray[np.float64]
    answers: list[str]
    partial: float | None = None

    def __repr__(self) -> str:
        return f"Evaluation(mean {self.mean:.4f} +- {self.standard_error:.4f}, n = {self.n})"

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean reward."""
        return float(self.scores.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; NaN for a single prompt."""
        return standard_error(self.scores)


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two evaluations on the same prompts.

    Attributes:
        difference: mean of second minus first.
        standard_error: of the difference, from the paired differences.
        gained, lost: prompts on which the second scored higher, lower.
        p: two-sided p-value under equally likely gains and losses: McNemar's exact test for 0/1 rewards,
            which for other rewards is the sign test.
    """

    difference: float
    standard_error: float
    gained: int
    lost: int
    p: float


Answered = Callable[[], None]
"""Called as each prompt is answered."""

_TOGETHER = 32
"""Given answers that are measured between two reports of progress."""

_COUNTED = 32
"""Answers, the longest in bytes, that are tokenized to find the longest in tokens."""


def fitted(task: Task, llm: PersonalizedModel) -> Task:
    """Return a task whose answers have at most half as many tokens again as the longest of its given ones.

    The limit of a file's task is its longest answer in bytes, as no model is there to count tokens. Where the
    reward compares with whole answers, what is longer is wrong; all other tasks keep their limit.
    """
    known = [sample for sample in (*task.train, *task.held_out) if sample.answer is not None]
    if not known or task.reward not in (label, json_value):
        return task
    known.sort(key=lambda sample: len(str(sample.answer).encode()))
    longest = max(len(llm.encode_answer(sample)) for sample in known[-_COUNTED:])
    return replace(task, max_tokens=min(task.max_tokens, longest + longest // 2))


def evaluate(
    batch: Batch,
    task: Task,
    vector: MicroVector | None,
    *,
    samples: Sequence[Sample] | None = None,
    preamble: Preamble | None = None,
    answered: Answered = lambda: None,
) -> Evaluation:
    """Score the greedy answers of a vector to a task's held-out prompts.

    The answers keep to the task's schema, or to their prompts' tools. Where its reward is `text`, none is
    drawn, and the given answers are measured, up to the token limit.

    Args:
        batch: over the deployed model.
        task: prompts, reward, schema and token limit.
        vector: None for the base alone.
        samples: other prompts than `task.held_out`.
        preamble: what stands before every prompt. The reward sees the prompt without it.
        answered: called as each prompt is answered.

    Raises:
        VectorError: the vector does not fit, or a prompt does not fit the batch's context.
        TrainError: the reward fails, or a preamble cannot stand before a prompt.
        RequestError: the schema, or a prompt's tools, become no grammar.
        MissingExtraError: llguidance is not installed, which schemas and tools need.
    """
    chosen = list(task.held_out if samples is None else samples)
    prompts = chosen if preamble is None else [preamble.before(sample) for sample in chosen]
    if is_text(task.reward):
        return _likelihoods(batch, task, vector, prompts, answered)
    rules: dict[str, Any] = {"max_tokens": task.max_tokens, "schema": task.schema}
    (answers,) = batch.answer_each([vector], prompts, answered=answered, **rules)
    partial = None
    if task.shaped is not None:
        partial = float(np.mean(replace(task, reward=task.shaped).scores(answers, chosen)))
    return Evaluation(
        np.array(task.scores(answers, chosen), np.float64), [answer.text for answer in answers], partial
    )


def _likelihoods(
    batch: Batch, task: Task, vector: MicroVector | None, prompts: Sequence[Sample], answered: Answered
) -> Evaluation:
    """Measure how likely the given answers are."""
    found: list[float] = []
    for start in range(0, len(prompts), _TOGETHER):
        samples = prompts[start : start + _TOGETHER]
        answers = [[batch.llm.encode_answer(sample)[: task.max_tokens]] for sample in samples]
        (scores,) = batch.score_each([vector], batch.encode(samples), answers)
        for (each,) in scores:
            found.append(float(each.mean()))
            answered()
    return Evaluation(np.array(found), [""] * len(found))


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two evaluations on the same prompts.

    VectorError: they have different numbers of prompts.
    """
    if first.n != second.n:
        raise VectorError(
            f"evaluations on {first.n} and {second.n} prompts cannot be paired: take the same for both"
        )
    gaps = second.scores - first.scores
    gained, lost = int((gaps > 0).sum()), int((gaps < 0).sum())
    pairs = gained + lost  # binomial with 1/2 (McNemar, 1947)
    p = 2 * sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1)) / 2**pairs
    return Comparison(float(gaps.mean()), standard_error(gaps), gained, lost, min(1.0, p))


def held_out(base: Evaluation, vector: Evaluation) -> dict[str, Any]:
    """Return the figures of base and vector on the same prompts, as the record of a run has them."""
    return {
        "n": base.n,
        "base": base.mean,
        "base_standard_error": base.standard_error,
        "vector": vector.mean,
        "vector_standard_error": vector.standard_error,
        **asdict(compare(base, vector)),
    }


TRIED = tuple(itertools.product(range(3), (2, 4, 8)))
"""The few-shot prompts that are tried: which draw, and of how many examples."""


def find_examples(
    llm: PersonalizedModel,
    task: Task,
    judged: Sequence[Sample],
    *,
    seconds: float,
    vector: MicroVector | None = None,
    n_threads: int | None = None,
    answered: Answered = lambda: None,
) -> tuple[Preamble, list[dict[str, float]]]:
    """Find the worked examples that do best for the base, or a vector, among a task's own training prompts.

    They are chosen by their score on the prompts of `judged`, which are neither shown nor measured on. After
    `seconds` the draw that is being tried is given up. `answered` is called as in `evaluate`, for `TRIED`
    times `judged` answers in all.

    Returns:
        the best draw, of equals one with the fewest examples; and `examples`, `draw` and `score` of each that
        was measured to its end.

    Raises:
        TrainError: the task has no answers to show; no draw leaves room in the model's context for the
            longest prompt, judged or held out, and its answer; none was tried to its end in the time.
    """
    hidden = {sample.text for sample in judged}
    source = replace(task, train=[sample for sample in task.train if sample.text not in hidden])
    longest = max((*task.held_out, *judged), key=lambda sample: len(llm.encode(sample)[0]))
    found: list[tuple[Preamble, dict[str, float]]] = []
    refused, end = None, time.monotonic() + seconds

    def going() -> None:
        answered()
        if time.monotonic() > end:
            raise Stopped

    for draw, count in TRIED:
        try:
            preamble = Preamble(examples=draw_examples(source, count, seed=draw))
            prompts = [preamble.before(sample) for sample in (*judged, longest)]
            batch = llm.batch(prompts, task.max_tokens, n_threads=n_threads)
        except TrainError as error:
            refused = refused or error
            continue
        try:
            with batch:
                one = evaluate(batch, task, vector, samples=judged, preamble=preamble, answered=going)
        except Stopped:
            break
        found.append((preamble, {"examples": count, "draw": draw, "score": one.mean}))
    if not found:
        raise refused or TrainError(f"no draw was tried to its end within {seconds:.0f} s: allow more")
    best, _ = max(found, key=lambda each: (each[1]["score"], -each[1]["examples"]))
    return best, [tried for _, tried in found]


INTERRUPTED = "interrupted; the vector is written, and eval measures it"

_NOTHING = Preamble()

_SEARCH_S = 120.0  # for the few-shot prompt
_JUDGED = 24  # validation prompts that it is chosen by
GENERAL = 32
"""General prompts that the drift is measured on beside a gain; `eval --drift` takes all."""
_KEPT = 8  # answers that the record keeps


@dataclass
class Measuring:
    """The measurement of a vector, and its record for JSON.

    Where another vector lies beneath it, that one, as `beneath`, takes the place of the base.

    Attributes:
        llm: the deployed model, and `batch` over it.
        validation: prompts that the few-shot prompt is chosen by, the first of them.
        n_threads: of further batches.
        report: called with progress: `{"event": "measuring", "what", "done", "total"}`.
    """

    llm: PersonalizedModel
    batch: Batch
    task: Task
    vector: MicroVector
    validation: Sequence[Sample]
    n_threads: int
    report: Report
    record: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measure the vector where it will be used, and return the record.

        Base and vector on the held-out prompts; the best few-shot prompt beside them; the drift. Ctrl-C ends
        it at once and keeps what is measured by then. `record["unmeasured"]` says why a part is not. Where
        base and vector fail, nothing else is tried.
        """
        parts: dict[str, Callable[[], None]] = {
            "base and vector": self._held_out,
            "worked examples": self._few_shot,
            "drift": self._drift,
        }
        unmeasured: dict[str, str] = {}
        for number, (what, measure) in enumerate(parts.items()):
            try:
                measure()
            except KeyboardInterrupt:
                unmeasured |= dict.fromkeys([*parts][number:], INTERRUPTED)
                break
            except (TinyLoraError, OSError) as error:
                unmeasured[what] = str(error)
                if "held_out" not in self.record:
                    break
        return self.record | ({"unmeasured": unmeasured} if unmeasured else {})

    def _held_out(self) -> None:
        if not self.task.held_out:
            raise TrainError(f"task {self.task.name} has no held-out prompts to measure on")
        if is_text(self.task.reward):
            self.record["unit"] = "nats a token"
        name = "base" if self.vector.under is None else "beneath"
        base = self._arm(name, self.batch, self.vector.under)
        self.record["held_out"] = held_out(base, self._arm("vector", self.batch, self.vector))

    def _few_shot(self) -> None:
        if self.task.preamble is not None:
            raise TrainError("base and vector stand behind a prompt already")
        judged = self.validation[:_JUDGED]
        answered = self._progress("worked examples on validation prompts", len(TRIED) * len(judged))
        more: dict[str, Any] = {"seconds": _SEARCH_S, "answered": answered, "n_threads": self.n_threads}
        best, tried = find_examples(self.llm, self.task, judged, vector=self.vector.under, **more)
        self.record["prompt"] = {**best.record(), "tried": tried}
        prompts = [best.before(sample) for sample in self.task.held_out]
        with self.llm.batch(prompts, self.task.max_tokens, n_threads=self.n_threads) as batch:
            self._arm("prompt", batch, self.vector.under, best)
            self._arm("vector + prompt", batch, self.vector, best)

    def _drift(self) -> None:
        self._progress("drift on general prompts", GENERAL)
        found = measure_drift(self.llm, self.vector, count=GENERAL, n_threads=self.n_threads)
        self.record["drift"] = asdict(found)

    def _arm(
        self, name: str, batch: Batch, vector: MicroVector | None, preamble: Preamble = _NOTHING
    ) -> Evaluation:
        samples = self.task.held_out
        answered = self._progress(f"{name} on held-out prompts", len(samples))
        found = evaluate(batch, self.task, vector, preamble=preamble, answered=answered)
        tokens = map(len, batch.encode([preamble.before(sample) for sample in samples]))
        self.record.setdefault("arms", {})[name] = {
            "mean": found.mean,
            "standard_error": found.standard_error,
            **({} if found.partial is None else {"partial": found.partial}),
            "tokens": fmean(tokens),
            "bytes": len(vector.to_bytes(self.llm.bases.of(vector))) if vector is self.vector else 0,
        }
        if is_text(self.task.reward):  # nothing is answered
            return found
        if not self.record.get("answers"):
            kept = [sample.without_preamble or sample for sample in samples[:_KEPT]]
            self.record["answers"] = [{"asked": each.text, "wanted": each.answer} for each in kept]
        for row, answer in zip(self.record["answers"], found.answers, strict=False):
            row[name] = answer
        return found

    def _progress(self, what: str, total: int) -> Answered:
        done = itertools.count(1)

        def answered() -> None:
            self.report({"event": "measuring", "what": what, "done": next(done), "total": total})

        self.report({"event": "measuring", "what": what, "done": 0, "total": total})
        return answered
