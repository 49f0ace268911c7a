"""The measuring of a trained vector in the deployed model: every arm and form, and the record of it all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from operator import eq
from os import PathLike
from statistics import fmean
from typing import Any

from .. import runtime
from ..errors import TinyLoraError, TrainError
from ..formats.bundle import load_bundle
from ..runtime.batch import Batch
from ..runtime.learning.state import Report
from ..runtime.model import PersonalizedModel
from ..tasks import Preamble, Sample, Task
from ..tasks.rewards import is_text
from ..vector import MicroVector
from .drift import measure_drift
from .few_shot import TRIED, find_examples
from .scores import Answered, Evaluation, evaluate, held_out

INTERRUPTED = "interrupted; the vector is written, and eval measures it"

_LLAMA, _ONNX = "llama.cpp", "ONNX Runtime"
_NOTHING = Preamble()

_SEARCH_S = 120.0  # for the few-shot prompt
_JUDGED = 24  # validation prompts that it is chosen by
_GENERAL = 32  # general prompts that the drift is measured on
_ON_OTHERS = 64  # held-out prompts that other deployed forms answer
_KEPT = 8  # answers that the record keeps


@dataclass
class Measuring:
    """What is known of a vector: evaluations by name (`base`, `vector`), and the record as JSON takes it.

    Where another vector lies beneath it, that takes the place of the base, as `beneath`.

    Attributes:
        bundle: of the model.
        llm: the model in llama.cpp, and `batch` over it.
        validation: prompts that the few-shot prompt is chosen by, the first of them.
        n_threads: of further batches.
        report: called with progress: `{"event": "measuring", "what", "done", "total"}`.
    """

    bundle: str | PathLike[str]
    llm: PersonalizedModel
    batch: Batch
    task: Task
    vector: MicroVector
    validation: Sequence[Sample]
    n_threads: int
    report: Report
    found: dict[str, Evaluation] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measure the vector where it will be used, and return the record.

        Base and vector on the held-out prompts; the best few-shot prompt beside them; the bundle's graph;
        the drift. Ctrl-C ends it at once, and what is known by then stays. What is not measured is named,
        with the reason, in `record["unmeasured"]`.
        """
        parts: dict[str, Callable[[], None]] = {
            "base and vector": self._held_out,
            "worked examples": self._few_shot,
        }
        if load_bundle(self.bundle).onnx is not None:
            parts[f"the graph in {_ONNX}"] = self._graph
        parts["drift"] = self._drift
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
        if is_text(self.task.reward):
            self.record["unit"] = "nats a token"
        self._arm(self._base, self.batch, self.vector.under)
        self._arm("vector", self.batch, self.vector)
        self.record["held_out"] = held_out(self.found[self._base], self.found["vector"])

    def _few_shot(self) -> None:
        if self.task.preamble is not None:
            raise TrainError("base and vector stand behind a prompt already")
        judged = self.validation[:_JUDGED]
        answered = self._progress("worked examples on validation prompts", len(TRIED) * len(judged))
        best = find_examples(
            self.llm,
            self.task,
            judged,
            vector=self.vector.under,
            seconds=_SEARCH_S,
            answered=answered,
            n_threads=self.n_threads,
        )
        self.record["prompt"] = best.record()
        prompts = [best.preamble.before(sample) for sample in self.task.held_out]
        with self.llm.batch(prompts, self.task.max_tokens, n_threads=self.n_threads) as batch:
            self._arm("prompt", batch, self.vector.under, best.preamble)
            self._arm("vector + prompt", batch, self.vector, best.preamble)

    def _graph(self) -> None:
        samples = self.task.held_out[:_ON_OTHERS]
        arms = {self._base: self.vector.under, "vector": self.vector}
        with (
            closing(runtime.load(self.bundle, engine="onnx", n_threads=self.n_threads)) as other,
            other.batch(samples, self.task.max_tokens, n_threads=self.n_threads) as batch,
        ):
            found = {}
            for name, vector in arms.items():
                answered = self._progress(f"{name} in {_ONNX}", len(samples))
                found[name] = evaluate(batch, self.task, vector, samples=samples, answered=answered)
        first = {name: self.found[name].first(len(samples)) for name in arms}
        here, there = (held_out(each[self._base], each["vector"]) for each in (first, found))
        if not is_text(self.task.reward):
            answers = found["vector"].answers
            there["same"] = sum(map(eq, answers, first["vector"].answers))
            there["empty"] = sum(not answer.strip() for answer in answers)
        self.record["forms"] = {_LLAMA: here, _ONNX: there}
        gain = here["difference"]
        if gain > 2 * here["standard_error"] and there["difference"] < gain / 2:
            self.record["warning"] = (
                f"in {_ONNX} the vector gains {there['difference']:+.3f}, less than half of the {gain:+.3f} "
                f"in {_LLAMA}: do not deploy it on this graph, or export one with more bits a weight"
            )

    def _drift(self) -> None:
        self._progress("drift on general prompts", _GENERAL)
        found = measure_drift(self.llm, self.vector, count=_GENERAL, n_threads=self.n_threads)
        self.record["drift"] = found.record()

    @property
    def _base(self) -> str:
        return "base" if self.vector.under is None else "beneath"

    def _arm(
        self, name: str, batch: Batch, vector: MicroVector | None, preamble: Preamble = _NOTHING
    ) -> None:
        samples = self.task.held_out
        answered = self._progress(f"{name} on held-out prompts", len(samples))
        found = evaluate(batch, self.task, vector, preamble=preamble, answered=answered)
        tokens = map(len, batch.encode([preamble.before(sample) for sample in samples]))
        self.found[name] = found
        self.record.setdefault("arms", {})[name] = {
            "mean": found.mean,
            "standard_error": found.standard_error,
            **({} if found.partial is None else {"partial": found.partial}),
            "tokens": fmean(tokens),
            "bytes": len(vector.to_bytes(self.llm.bases.of(vector))) if vector is self.vector else 0,
        }
        if is_text(self.task.reward):  # nothing is answered
            return
        if not self.record.get("answers"):
            kept = [sample.without_preamble or sample for sample in samples[:_KEPT]]
            self.record["answers"] = [{"asked": each.text, "wanted": each.answer} for each in kept]
        for row, answer in zip(self.record["answers"], found.answers, strict=False):
            row[name] = answer

    def _progress(self, what: str, total: int) -> Answered:
        done = itertools.count(1)  # its next() is atomic

        def answered(count: int) -> None:
            self.report({"event": "measuring", "what": what, "done": next(done), "total": total})

        self.report({"event": "measuring", "what": what, "done": 0, "total": total})
        return answered
