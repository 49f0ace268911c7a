"""What a vector gains in the deployed model: paired scores on held-out prompts, with errors and a test.

Also the search for the prompt that a vector is compared with, and the record of all that is measured.
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
from ..tasks import Preamble, Sample, Task, draw_examples, instruction
from ..tasks.load import load_general
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

_COUNTED = 32
"""How many answers, the longest in bytes, are tokenized to find the longest in tokens."""


def fitted(task: Task, llm: PersonalizedModel) -> Task:
    """Return a task with a lower limit of tokens: half as many again as its longest given answer has.

    Only for rewards that compare with whole answers, to which a longer answer is wrong; other tasks keep
    their limit. The limit of a task from a file is in bytes of its longest answer, as no model was there to
    count tokens.
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
    """Return minus the nats a token of the given answers, in place of rewards."""
    answers = [[batch.llm.encode_answer(sample)[: task.max_tokens]] for sample in prompts]
    (scores,) = batch.score_each([vector], batch.encode(prompts), answers, answered=answered)
    found = [float(each.mean()) for (each,) in scores]
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


TRIED = (
    *((True, 0, 8), (False, 0, 8), (True, 1, 8), (False, 1, 8), (True, 0, 4)),
    *((True, 0, 0), (False, 0, 4), (True, 2, 8), (False, 0, 2)),
)
"""The prompts that are tried, in this order: whether with the task's `instruction`, which draw of examples,
and how many. Small models do better without an instruction."""

_WHOLE, _MOST_EXAMPLES = 8, 32
"""Prompts of 8 examples have one of each answer where answers recur, up to 32."""


def prompts_for(task: Task) -> list[tuple[str | None, int, int]]:
    """Return the prompts of `TRIED` for a task: the instruction or None, the draw, how many examples."""
    said, different = instruction(task), len({sample.answer for sample in task.train})
    each = min(different, _MOST_EXAMPLES) if 2 * different <= len(task.train) else 0
    found = [
        (said if with_it else None, draw, max(count, each) if count == _WHOLE else count)
        for with_it, draw, count in TRIED
    ]
    return [one for one in dict.fromkeys(found) if one[0] or one[2]]


def find_prompt(
    llm: PersonalizedModel,
    task: Task,
    judged: Sequence[Sample],
    *,
    seconds: float,
    vector: MicroVector | None = None,
    n_threads: int | None = None,
    answered: Answered = lambda: None,
) -> tuple[Preamble, list[dict[str, Any]]]:
    """Find the prompt that does best for the base, or a vector: the task's instruction, worked examples from
    its own training prompts, or both.

    It is chosen by its score on the prompts of `judged`, which are neither shown nor measured on. After
    `seconds` the prompt that is being tried is given up, unless it is the first. `answered` is called as in
    `evaluate`, for all of `prompts_for` times `judged` answers.

    Returns:
        the best prompt, of equals one with the fewest examples; and `instruction` (whether it has one),
        `examples`, `draw` and `score` of each that was measured to its end.

    Raises:
        TrainError: the task has neither an instruction nor answers to show; no prompt leaves room in the
            model's context for the longest question, judged or held out, and its answer.
    """
    hidden = {sample.text for sample in judged}
    source = replace(task, train=[sample for sample in task.train if sample.text not in hidden])
    longest = max((*task.held_out, *judged), key=lambda sample: len(llm.encode(sample)[0]))
    found: list[tuple[Preamble, dict[str, Any]]] = []
    refused, end = None, time.monotonic() + seconds

    def going() -> None:
        answered()
        if found and time.monotonic() > end:
            raise Stopped

    for said, draw, count in prompts_for(source):
        try:
            preamble = Preamble(said, draw_examples(source, count, seed=draw))
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
        tried = {"instruction": said is not None, "examples": count, "draw": draw, "score": one.mean}
        found.append((preamble, tried))
    if not found:
        raise refused or TrainError(f"task {task.name} has nothing to make a prompt of")
    best, _ = max(found, key=lambda each: (each[1]["score"], -each[1]["examples"]))
    return best, [tried for _, tried in found]


INTERRUPTED = "interrupted; the vector is written, and eval measures it"

_NOTHING = Preamble()

_SEARCH_S = 120.0  # time for the search for the prompt that the vector is compared with
_JUDGED = 24  # validation prompts that this prompt is chosen by
GENERAL = 32
"""General prompts that the drift is measured on beside a gain; `eval --drift` takes all."""
KEPT = 10
"""Answers that a record keeps."""
_WRITTEN = 64  # tokens of a kept answer of free text, at most
_LONGER = 1.5  # about how many times as long an answer behind a prompt takes as one without


def expected_seconds(task: Task, answer_s: float) -> float:
    """Return about how many seconds `Measuring.run` takes at most, if an answer takes `answer_s`."""
    asked = answer_s * len(task.held_out)
    tried = answer_s * _LONGER * _JUDGED * len(prompts_for(task))
    general = 3 * GENERAL * answer_s * max(1.0, _WRITTEN / task.max_tokens)
    behind = 0.0 if task.preamble is not None else min(_SEARCH_S, tried) + 2 * _LONGER * asked
    return 2 * asked + behind + general


@dataclass
class Measuring:
    """The measurement of a vector in the deployed model, and its record for JSON.

    If the vector lies on another one, that one takes the base's place, under the name `beneath`.

    Attributes:
        llm: the deployed model.
        task: whose held-out prompts it is measured on.
        vector: None for the base alone.
        size: bytes of its frame.
        report: called with progress: `{"event": "measuring", "what", "done", "total"}`.
        n_threads: of the batches.
        validation: prompts, of which the first choose the prompt that the vector is compared with; without
            any, it is compared with none.
        kept: answers that the record keeps.
    """

    llm: PersonalizedModel
    task: Task
    vector: MicroVector | None
    size: int
    report: Report
    n_threads: int | None = None
    validation: Sequence[Sample] = ()
    kept: int = KEPT
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if is_text(self.task.reward):
            self.record["unit"] = "nats a token"

    def run(self) -> dict[str, Any]:
        """Measure everything, and return the record.

        The parts are base and vector on the held-out prompts; the best prompt (`find_prompt`), and whether it
        or the vector is `ahead`; and the drift. Ctrl-C ends the measurement at once, and what is measured by
        then stays. `record["unmeasured"]` says why a part is not measured. If base and vector fail, nothing
        else is tried.
        """
        parts: dict[str, Callable[[], None]] = {"base and vector": self._held_out}
        parts |= {"prompt": self._prompt} if self.validation else {}
        parts |= {"drift": self.drift}
        for number, (what, measure) in enumerate(parts.items()):
            try:
                self.attempt(what, measure)
            except KeyboardInterrupt:
                unmeasured = self.record.setdefault("unmeasured", {})
                unmeasured |= dict.fromkeys([*parts][number:], INTERRUPTED)
                break
            if "held_out" not in self.record:
                break
        return self.record

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """Measure a part. If that fails, the record says why."""
        try:
            measure()
        except (TinyLoraError, OSError) as error:
            self.record.setdefault("unmeasured", {})[what] = str(error)

    def arm(self, name: str, vector: MicroVector | None, preamble: Preamble = _NOTHING) -> Evaluation:
        """Score a vector behind a preamble, and record its figures and first answers under a name."""
        samples, task = self.task.held_out, self.task
        answered = self._progress(f"{name} on held-out prompts", len(samples))
        prompts = [preamble.before(sample) for sample in samples]
        with self.llm.batch(prompts, task.max_tokens, n_threads=self.n_threads) as batch:
            found = evaluate(batch, task, vector, preamble=preamble, answered=answered)
            self.record.setdefault("arms", {})[name] = {
                "n": found.n,
                "mean": found.mean,
                "standard_error": found.standard_error,
                **({} if found.partial is None else {"partial": found.partial}),
                "tokens": fmean(map(len, batch.encode(prompts))),
                "bytes": 0 if vector is not self.vector else self.size,
            }
            self._keep_answers(name, batch, vector, found, prompts)
        return found

    def drift(self, count: int | None = GENERAL) -> None:
        """Measure the drift on the first `count` general prompts, or on all."""
        total = 5 * len(load_general()[:count])
        more: dict[str, Any] = {"answered": self._progress("drift on general prompts", total)}
        found = measure_drift(self.llm, self.vector, count=count, n_threads=self.n_threads, **more)
        self.record["drift"] = asdict(found)

    def _held_out(self) -> None:
        if not self.task.held_out:
            raise TrainError(f"task {self.task.name} has no held-out prompts to measure on")
        below = self._beneath
        base = self.arm("base" if below is None else "beneath", below)
        self._own = self.arm("vector", self.vector)
        self.record["held_out"] = held_out(base, self._own)

    @property
    def _beneath(self) -> MicroVector | None:
        return None if self.vector is None else self.vector.under

    def _prompt(self) -> None:
        if self.task.preamble is not None:
            raise TrainError("base and vector are already behind a prompt")
        judged = self.validation[:_JUDGED]
        total = len(prompts_for(self.task)) * len(judged)
        answered = self._progress("prompts, on validation prompts", total)
        more: dict[str, Any] = {"seconds": _SEARCH_S, "answered": answered, "n_threads": self.n_threads}
        best, tried = find_prompt(self.llm, self.task, judged, vector=self._beneath, **more)
        self.record["prompt"] = {**best.record(), "tried": tried}
        behind = self.arm("prompt", self._beneath, best)
        self.record["ahead"] = asdict(compare(behind, self._own))
        self.arm("vector + prompt", self.vector, best)

    def _keep_answers(
        self, name: str, batch: Batch, vector: MicroVector | None, found: Evaluation, prompts: list[Sample]
    ) -> None:
        """Record the first answers, beside the right ones. For the reward `text` none was drawn yet, so up
        to `KEPT` short ones are drawn now. Texts without prompts have no answers."""
        samples, answers, free = self.task.held_out, found.answers, is_text(self.task.reward)
        if samples[0].unprompted:
            return
        most = min(self.kept, KEPT) if free else self.kept
        if free:
            room = batch.n_ctx_seq - max(map(len, batch.encode(prompts[:most])))
            tokens = min(self.task.max_tokens, _WRITTEN, room)
            (drawn,) = batch.answer_each([vector], prompts[:most], max_tokens=tokens)
            answers = [answer.text for answer in drawn]
        if not self.record.get("answers"):
            asked = [sample.without_preamble or sample for sample in samples[:most]]
            self.record["answers"] = [{"asked": each.text, "wanted": each.answer} for each in asked]
        for row, answer in zip(self.record["answers"], answers, strict=False):
            row[name] = answer

    def _progress(self, what: str, total: int) -> Answered:
        done = itertools.count(1)

        def answered() -> None:
            self.report({"event": "measuring", "what": what, "done": next(done), "total": total})

        self.report({"event": "measuring", "what": what, "done": 0, "total": total})
        return answered
