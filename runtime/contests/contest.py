"""`contest`: a vector, prompts, examples and LoRAs on the same prompts, paired, with what each costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import TrainError
from ...tasks import Preamble, Sample, Task
from ..evaluation import Comparison, Evaluation, Report, Tally, bootstrap_interval, compare, evaluate
from ..model import PersonalizedModel
from .contestant import BASE, Contestant
from .cost import TIMED_TOKENS, Clock, Cost


@dataclass(frozen=True)
class Duel:
    """Two contestants on the same prompts.

    Attributes:
        first, second: their names.
        comparison: second minus first. Its `p` is McNemar's exact one where every reward is 0 or 1.
        interval: 95 % interval of the difference by a paired bootstrap; None where every reward is 0 or 1.
    """

    first: str
    second: str
    comparison: Comparison
    interval: tuple[float, float] | None

    @classmethod
    def between(cls, first: tuple[str, Evaluation], second: tuple[str, Evaluation], *, seed: int = 0) -> Duel:
        """Compare two evaluations on the same prompts, each with its name.

        Raises:
            VectorError: they have different numbers of prompts.
        """
        (name, one), (other_name, other) = first, second
        found = compare(one, other)
        whole = bool(np.isin(np.concatenate([one.scores, other.scores]), (0.0, 1.0)).all())
        interval = None if whole else bootstrap_interval(one, other, seed=seed)
        return cls(name, other_name, found, interval)

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON takes them: a p-value or an interval, whichever there is."""
        figures = {"first": self.first, "second": self.second, **asdict(self.comparison)}
        if self.interval is not None:
            del figures["p"]
            figures["interval_95"] = list(self.interval)
        return figures


@dataclass(frozen=True)
class Standing:
    """One contestant's answers, and what they cost."""

    contestant: Contestant
    evaluation: Evaluation
    cost: Cost


@dataclass(frozen=True, repr=False)
class Contest:
    """The outcome of a contest.

    Attributes:
        standings: by contestant, in the order that they were given; the base is first.
        seed: of the bootstrap.
    """

    standings: tuple[Standing, ...]
    seed: int = 0

    def __getitem__(self, name: str) -> Standing:
        """Return a contestant's standing by its name."""
        for standing in self.standings:
            if standing.contestant.name == name:
                return standing
        raise KeyError(name)

    def __repr__(self) -> str:
        means = ", ".join(f"{s.contestant.name} {s.evaluation.mean:.4f}" for s in self.standings)
        return f"Contest({means}, n = {self.standings[0].evaluation.n})"

    def duel(self, first: str, second: str) -> Duel:
        """Compare two contestants, by their names: second minus first, paired by prompt."""
        one, other = self[first].evaluation, self[second].evaluation
        return Duel.between((first, one), (second, other), seed=self.seed)

    def record(self) -> dict[str, Any]:
        """Return everything as JSON takes it, with a duel of each contestant and the base.

        With a vector alone among the contestants, there are a duel of each other one and that, and one of
        each and the same with the vector.
        """
        return {
            "contestants": [_record(standing) for standing in self.standings],
            "duels": [duel.record() for duel in self.duels()],
        }

    def duels(self) -> Iterator[Duel]:
        """Yield the duels that `record` has."""
        names = [standing.contestant.name for standing in self.standings]
        for name in names[1:]:
            yield self.duel(BASE.name, name)
        alone = next((s.contestant.name for s in self.standings if _is_vector(s.contestant)), None)
        if alone is None:
            return
        for name in names[1:]:
            if self[name].contestant.vector is None:
                yield self.duel(name, alone)
                if f"{alone} + {name}" in names:
                    yield self.duel(name, f"{alone} + {name}")


def contest(
    llm: PersonalizedModel,
    task: Task,
    contestants: Sequence[Contestant],
    *,
    samples: Sequence[Sample] | None = None,
    requests: int = 3,
    temperature: float = 0.0,
    seed: int = 0,
    sequences: int = 32,
    n_threads: int | None = None,
    report: Report = lambda figures: None,
) -> Contest:
    """Measure contestants and the base on the same prompts, and what each costs on this machine.

    Rewards are those of the task, and judge an answer beside the prompt without any preamble. The times are
    of single requests, through the engine's own generation, by turns of the contestants.

    Args:
        llm: a loaded model. Its vector is the same afterwards; in ONNX Runtime its context is emptied.
        task: prompts, reward and token limit.
        contestants: besides the base, which is measured first.
        samples: other prompts than `task.held_out`.
        requests: timed pairs of requests a contestant; 0 measures no times.
        temperature: 0 for greedy answers.
        seed: of sampling and of the bootstrap.
        sequences: answers that are generated at the same time.
        n_threads: cores to use; by default all that the engine would take.
        report: called as prompts are answered, `what` being the name of a contestant, or `times`.

    Raises:
        TrainError: two contestants have one name, a preamble does not fit the context or cannot stand before
            a prompt, or the reward fails.
        VectorError: a vector does not fit the basis, or the model has no chat template.
        BaseMismatchError: a LoRA is of another model.
        TinyLoraError: the engine has no LoRAs.
    """
    chosen = list(task.held_out if samples is None else samples)
    field = [BASE, *contestants]
    names = [contestant.name for contestant in field]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise TrainError(f"two contestants are called {again!r}: each needs a name of its own")
    prompts = [[each.preamble.before(sample) for sample in chosen] for each in field]
    lengths = [
        fitting(llm, asked, task.max_tokens, each.preamble)
        for each, asked in zip(field, prompts, strict=True)
    ]
    for each in field:
        if each.vector is not None:
            llm.basis.values(each.vector)
    most = min(TIMED_TOKENS, task.max_tokens)
    found: list[Evaluation] = []
    clocks: list[Clock] = []
    with ExitStack() as stack:
        models = _Models(llm, stack, max(map(max, lengths)) + most)
        for each in field:
            models.check(each.lora)
        tally = Tally(report, len(field) * len(chosen))
        for each, asked in zip(field, prompts, strict=True):
            tally.begin(each.name)
            with models.answering(each.lora)._population(
                asked, task.max_tokens, sequences=sequences, n_threads=n_threads
            ) as batch:
                options: dict[str, Any] = {"temperature": temperature, "seed": seed, "answered": tally}
                found.append(
                    evaluate(batch, task, each.vector, samples=chosen, preamble=each.preamble, **options)
                )
        if requests:
            tally.begin("times")
            clocks = [
                Clock(models.timed(each.lora), each, asked, most)
                for each, asked in zip(field, prompts, strict=True)
            ]
            for first in {id(clock.llm): clock for clock in clocks}.values():
                first.warm()
        for number in range(requests):
            for clock in clocks:
                clock.take(number)
    times = [clock.figures() for clock in clocks] or [{}] * len(field)
    return Contest(
        tuple(
            Standing(each, evaluation, _cost(llm, each, tokens, measured))
            for each, evaluation, tokens, measured in zip(field, found, lengths, times, strict=True)
        ),
        seed,
    )


def fitting(llm: PersonalizedModel, prompts: Sequence[Sample], answer: int, preamble: Preamble) -> list[int]:
    """Return the lengths of prompts in tokens.

    Raises:
        TrainError: one of them does not fit the context with its answer; the message says what of a preamble
            could go.
        VectorError: the model has no chat template, or it does not take these messages.
    """
    lengths = [len(llm._encode(sample)) for sample in prompts]
    if max(lengths) + answer > llm._room:
        parts = [f"{len(preamble.examples)} worked examples"] if preamble.examples else []
        parts += ["the system prompt"] if preamble.system is not None else []
        behind = f" behind {' and '.join(parts)}" if parts else ""
        advice = "take fewer or shorter examples" if preamble.examples else "shorten it"
        raise TrainError(
            f"the longest prompt{behind} has {max(lengths)} tokens, which with {answer} to generate pass the "
            f"model's context of {llm._room}: {advice}"
        )
    return lengths


class _Models:
    """The models of a contest: the given one for answers, and others beside it for LoRAs and times."""

    def __init__(self, llm: PersonalizedModel, stack: ExitStack, room: int) -> None:
        self._llm, self._stack, self._room = llm, stack, room
        self._opened: dict[Path | None, PersonalizedModel] = {}

    def check(self, lora: Path | None) -> None:
        """Open the model of a LoRA now: what is refused is refused before any work."""
        if lora is not None:
            self.timed(lora)

    def answering(self, lora: Path | None) -> PersonalizedModel:
        """Return the model that answers many prompts at once, in contexts of their own."""
        return self._llm if lora is None else self.timed(lora)

    def timed(self, lora: Path | None) -> PersonalizedModel:
        """Return the model whose own context takes requests."""
        if lora not in self._opened:
            self._opened[lora] = self._stack.enter_context(self._llm._beside(n_ctx=self._room, lora=lora))
        return self._opened[lora]


def _cost(
    llm: PersonalizedModel, each: Contestant, lengths: Sequence[int], times: dict[str, float | None]
) -> Cost:
    return Cost(
        prompt_tokens=sum(lengths) / len(lengths),
        sent=each.sent(llm.basis),
        shipped=each.preamble.size,
        making_s=each.making_s,
        **times,
    )


def _is_vector(contestant: Contestant) -> bool:
    return contestant.vector is not None and not contestant.preamble and contestant.lora is None


def _record(standing: Standing) -> dict[str, Any]:
    each, found = standing.contestant, standing.evaluation
    return {
        "name": each.name,
        "vector": each.vector is not None,
        **each.preamble.record(),
        "lora": None if each.lora is None else str(each.lora),
        "n": found.n,
        "mean": found.mean,
        "standard_error": found.standard_error,
        "cost": standing.cost.record(),
        "scores": found.scores.tolist(),
        "answers": found.answers,
    }
