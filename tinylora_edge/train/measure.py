"""The measuring at the end of a run, in the deployed model, and the record that is written of it all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from operator import eq
from os import PathLike
from statistics import fmean
from typing import Any

from .. import runtime
from ..basis import Basis
from ..documents import write_json
from ..errors import TinyLoraError, TrainError
from ..formats.bundle import load_bundle
from ..runtime.batch import Batch
from ..runtime.beside import TRIED, find_examples
from ..runtime.drift import measure_drift
from ..runtime.evaluation import Answered, Evaluation, Report, evaluate, held_out
from ..runtime.model import PersonalizedModel
from ..system import __version__, atomic_write, cores
from ..tasks import Preamble, Task
from ..tasks.rewards import is_text
from ..vector import MicroVector
from .options import Options, Outcome

_SECONDS = ("draw_s", "learn_s", "validate_s", "step_s")
"""The metrics that say how long a part took. Their sum is what the vector cost, interruptions left out."""

INTERRUPTED = "interrupted; the vector is written, and eval measures it"

_LLAMA, _ONNX = "llama.cpp", "ONNX Runtime"
_NOTHING = Preamble()

_SEARCH_S = 120.0  # for the prompt beside the vector
_JUDGED = 24  # validation prompts that it is chosen by
_ON_OTHERS = 64  # held-out prompts that other deployed forms answer
_SHOWN = 8  # answers that the record keeps


def measured(
    outcome: Outcome,
    bundle: str | PathLike[str],
    llm: PersonalizedModel,
    batch: Batch,
    task: Task,
    vector: MicroVector,
    options: Options,
    report: Report,
) -> Outcome:
    """Add what a vector is worth where it will be used, to an outcome whose frame is written already.

    Base and vector on the held-out prompts; the best prompt of worked examples beside them; the bundle's
    other deployed forms; the drift. Ctrl-C ends it at once, and what is known by then stays. What is not
    measured is named, with the reason, in `outcome.measured["unmeasured"]`. `llm` is the model in llama.cpp,
    `batch` is over it; `report` is told of progress: `{"event": "measuring", "what", "done", "total"}`.
    """
    measuring = _Measuring(bundle, llm, batch, task, vector, options, report)
    parts: dict[str, Callable[[], None]] = {
        "base and vector": measuring.held_out,
        "worked examples": measuring.prompt,
    }
    if load_bundle(bundle).onnx is not None:
        parts[f"the graph in {_ONNX}"] = measuring.graph
    if options.drift:
        parts["drift"] = measuring.drift
    unmeasured: dict[str, str] = {}
    for number, (what, measure) in enumerate(parts.items()):
        try:
            measure()
        except KeyboardInterrupt:
            unmeasured |= dict.fromkeys([*parts][number:], INTERRUPTED)
            break
        except (TinyLoraError, OSError) as error:
            unmeasured[what] = str(error)
            if "held_out" not in measuring.record:
                break
    found, record = measuring.found, measuring.record
    record |= {"unmeasured": unmeasured} if unmeasured else {}
    return replace(outcome, base=found.get("base"), personalized=found.get("vector"), measured=record)


@dataclass
class _Measuring:
    """What is known of a vector so far: evaluations by name, and the record as JSON takes it."""

    bundle: str | PathLike[str]
    llm: PersonalizedModel
    batch: Batch
    task: Task
    vector: MicroVector
    options: Options
    report: Report
    found: dict[str, Evaluation] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._threads = self.options.workers or cores()
        self._size: dict[str, Any] = {"sequences": self.options.sequences, "n_threads": self._threads}

    def held_out(self) -> None:
        """Measure base and vector on the held-out prompts."""
        if is_text(self.task.reward):
            self.record["unit"] = "nats a token"
        self._arm("base", self.batch, None)
        self._arm("vector", self.batch, self.vector)
        self.record["held_out"] = held_out(self.found["base"], self.found["vector"])

    def prompt(self) -> None:
        """Find worked examples; measure them alone, and together with the vector."""
        if self.task.preamble is not None:
            raise TrainError("base and vector stand behind a prompt already")
        judged = self.options.split(self.task)[0][:_JUDGED]
        answered = self._progress("worked examples on validation prompts", len(TRIED) * len(judged))
        best = find_examples(self.llm, self.task, judged, seconds=_SEARCH_S, answered=answered, **self._size)
        self.record["prompt"] = best.record()
        asked = [best.preamble.before(sample) for sample in self.task.held_out]
        with self.llm.batch(asked, self.task.max_tokens, **self._size) as batch:
            self._arm("prompt", batch, None, best.preamble)
            self._arm("vector + prompt", batch, self.vector, best.preamble)

    def graph(self) -> None:
        """Measure base and vector on the bundle's graph."""
        samples = self.task.held_out[:_ON_OTHERS]
        arms = {"base": None, "vector": self.vector}
        with (
            closing(runtime.load(self.bundle, engine="onnx", n_threads=self._threads)) as other,
            other.batch(samples, self.task.max_tokens, **self._size) as batch,
        ):
            found = {}
            for name, vector in arms.items():
                answered = self._progress(f"{name} in {_ONNX}", len(samples))
                found[name] = evaluate(batch, self.task, vector, samples=samples, answered=answered)
        first = {name: self.found[name].first(len(samples)) for name in arms}
        here, there = (held_out(each["base"], each["vector"]) for each in (first, found))
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

    def drift(self) -> None:
        """Measure the drift on general prompts."""
        self._progress("drift on general prompts", self.options.drift)
        found = measure_drift(self.llm, self.vector, count=self.options.drift, **self._size)
        self.record["drift"] = found.record()

    def _arm(
        self, name: str, batch: Batch, vector: MicroVector | None, preamble: Preamble = _NOTHING
    ) -> None:
        """Measure one of those that are compared on the held-out prompts."""
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
            "bytes": 0 if vector is None else len(vector.to_bytes(self.llm.bases.of(vector))),
        }
        if is_text(self.task.reward):  # nothing is answered
            return
        if not self.record.get("answers"):
            asked = [sample.bare or sample for sample in samples[:_SHOWN]]
            self.record["answers"] = [{"asked": each.text, "wanted": each.answer} for each in asked]
        for shown, answer in zip(self.record["answers"], found.answers, strict=False):
            shown[name] = answer

    def _progress(self, what: str, total: int) -> Answered:
        done = itertools.count(1)  # its next() is atomic

        def answered(count: int) -> None:
            self.report({"event": "measuring", "what": what, "done": next(done), "total": total})

        self.report({"event": "measuring", "what": what, "done": 0, "total": total})
        return answered


def write_result(
    vector: MicroVector,
    basis: Basis,
    task: Task,
    options: Options,
    outcome: Outcome,
    curve: list[dict[str, Any]],
    **more: Any,
) -> None:
    """Write the manifest, with `more` keys, and then the frame: who sees the frame finds its manifest."""
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
        "result": {k: v for k, v in asdict(outcome.result).items() if k != "vector"},
        "seconds": round(sum(row.get(key, 0.0) for row in curve for key in _SECONDS), 1),
        "curve": curve,
        **outcome.measured,
    }
    output = outcome.path
    write_json(output.with_name(f"{output.name}.json"), manifest)
    with atomic_write(output) as file:
        file.write(vector.to_bytes(basis))
