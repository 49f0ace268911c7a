"""One training run from a bundle and a task to a frame file: engines, files, signals, evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import runtime
from ..basis import Basis
from ..errors import TrainError
from ..eval.measure import Measuring, fitted
from ..formats.bundle import load_bundle
from ..process import cores, first_interrupt
from ..runtime.batch import Batch
from ..runtime.learning.state import Report
from ..runtime.model import admit
from ..tasks import Sample, Task
from ..tasks.load import load_general
from ..tasks.rewards import is_text
from ..tasks.task import name_of
from ..vector import Policy
from ..writes import locked
from .adapter import Adapter, load_model, one_thread
from .batches import REHEARSED_TOKENS, Demonstrations, Rehearsal, Sampled
from .learner import Learner
from .options import METHODS, MINUTES, Options, Outcome, Phase, Result, write_result
from .trainer import DIFFER, Trainer, load

_ANY = ("minutes", "rank", "numbers", "checkpoint_every", "keys", "sequence", "evaluate")
"""Options that may differ in a resumed run: whatever rank or numbers say, the basis has to be the same."""

_USED_UP = 0.8
"""Share of the budget which, once used, leaves GRPO no time to find a temperature and learn."""


def train(
    bundle: str | PathLike[str],
    task: Task,
    output: str | PathLike[str],
    *,
    options: Options | None = None,
    resume: bool = False,
    report: Report = lambda metrics: None,
) -> Outcome:
    """Train a micro-vector and write its frame.

    SFT ends where validation gets no better, and GRPO goes on from its vector with the rest of the budget
    (`Options.method`). `Result.phases` says what each method did, or why it was left out.

    Writes `output` (the frame), `output`.json (task, basis, options, curve, held-out figures) and, while it
    runs, the directory `output`.run with a checkpoint a method.
    SIGINT ends the run after the step at hand with its state saved; a second one ends it at once. A run that
    is refused, or finds nothing, leaves no file.

    Args:
        bundle: of the base that is deployed.
        task: prompts and reward.
        output: the frame file; it must not exist.
        options: of the run.
        resume: go on from the checkpoints in `output`.run, to the identical result where no minutes are set.
        report: called with the metrics of every step, and with events.

    Raises:
        TrainError: the task or the options do not work out, or nothing better than the base was found; the
            message says which and what to do.
        BasisError: the bundle has no basis of the rank or the numbers that are asked for.
        VectorError: the shared vector is refused.
        BaseMismatchError: the base is not one that the factors were exported for.
        MissingExtraError: torch, transformers or llama-cpp-python is not installed.
        OSError: a file cannot be written.
    """
    options, output = options or Options(), Path(output)
    if options.steps is None and options.minutes is None:
        options = replace(options, minutes=MINUTES)
    with run_folder(output) as folder, ExitStack() as stack:
        checkpoints = [folder / f"{method}.json" for method in METHODS]
        if not resume and any(path.exists() for path in checkpoints):
            raise unfinished(folder)
        methods = chosen_methods(task, options)
        first = folder / f"{methods[0]}.json"
        if resume and not first.exists():
            raise TrainError(f"{folder} has no {first.name} to resume from: start without --resume")
        engines = _Engines(bundle, task, options, methods, stack, first if resume else None)
        task, options = engines.task, engines.options
        about = engines.about()
        report({"event": "data", **about})
        run = _Run(engines, options, folder, report)

        def interrupted() -> None:
            run.stop()
            report({"event": "stopping"})

        with first_interrupt(interrupted):
            result = run.phases(methods)
        if run.stopping:
            return Outcome(folder, result)
        vector = options.framed(result.vector, engines.basis)
        if not vector.values.any():
            for path in checkpoints:
                path.unlink(missing_ok=True)
            raise nothing_found(task, result, run.curve)
        outcome = Outcome(output, replace(result, vector=vector))
        written = vector, engines.basis, task, options
        write_result(*written, outcome, run.curve, data=about)
        for path in checkpoints:
            path.unlink(missing_ok=True)
        if options.evaluate:
            measured = Measuring(
                engines.deployed,
                engines.batch,
                task,
                vector,
                validation=options.split(task)[0],
                n_threads=engines.threads,
                report=report,
            ).run()
            outcome = replace(outcome, measured=measured)
            write_result(*written, outcome, run.curve, data=about)
    return outcome


def chosen_methods(task: Task, options: Options) -> list[str]:
    """Return the methods of a run, in order."""
    free = is_text(task.reward)
    if options.method is not None:
        if free and options.method == "grpo":
            raise TrainError(
                f"task {task.name} is measured by the text of its answers, which no reward judges: GRPO has "
                "nothing to learn from. Leave --method out, or name a reward with --reward"
            )
        return [options.method]
    answered = all(sample.answer is not None for sample in task.train)
    return [method for method, fits in (("sft", answered or free), ("grpo", not free)) if fits]


class _Run:
    """The phases of a run, one after the other, each with a checkpoint of its own."""

    def __init__(self, engines: _Engines, options: Options, folder: Path, report: Report) -> None:
        self.stopping = False
        self.curve: list[dict[str, Any]] = []
        self._engines, self._options, self._folder, self._report = engines, options, folder, report
        self._trainer: Trainer | None = None
        self._known: NDArray[np.float64] | None = None  # validation of what the last phase found

    def stop(self) -> None:
        """End the run after the step at hand, its state saved."""
        self.stopping = True
        if self._trainer is not None:
            self._trainer.stop()

    def phases(self, methods: Sequence[str]) -> Result:
        """Run the methods that are worth it, each from what the one before found."""
        result: Result | None = None
        for method in methods:
            if result is None:
                result = self._phase(method, None)
            elif not self._checkpoint(method).exists() and (why := self._why_not(result)):
                phase = Phase(method, result.best_score, result.best_score, why=why)
                result = replace(result, phases=(*result.phases, phase))
            else:
                found = self._phase(method, result)
                (phase,) = found.phases
                if not phase.best_step and phase.stopped != "interrupted":
                    why = _NO_SIGNAL if phase.stopped == "no signal" else _NO_GAIN
                    phase = replace(phase, why=why)
                result = Result(found.vector, (*result.phases, phase))
            if self.stopping:
                break
        assert result is not None
        return result

    def _phase(self, method: str, before: Result | None) -> Result:
        """Run a method from what was found before it, or resume it from its checkpoint."""
        options = self._options
        steps, minutes = options.steps, options.minutes
        if before is not None:
            steps = None if steps is None else steps - before.steps
            minutes = None if minutes is None else minutes - before.phases[-1].seconds / 60
            if before.best_step:
                options = replace(options, start=tuple(before.vector.values.tolist()))
        options = replace(options, method=method, steps=steps, minutes=minutes)
        done = 0 if before is None else before.steps
        checkpoint = self._checkpoint(method)
        needed = 0.0 if before is None else DIFFER
        self._trainer = trainer = self._engines.trainer(options, checkpoint, needed, self._known)
        if checkpoint.exists():
            trainer.resume()
        if self.stopping:
            trainer.stop()

        def report(metrics: dict[str, Any]) -> None:
            self._report(_placed(metrics, method, done))

        result = trainer.run(report)
        self._trainer, self._known = None, trainer.state.best_scores
        self.curve += [_placed(row, method, done) for row in trainer.state.curve]
        return result

    def _checkpoint(self, method: str) -> Path:
        return self._folder / f"{method}.json"

    def _why_not(self, before: Result) -> str | None:
        """Return why GRPO is not worth its time after SFT, or None."""
        options, used = self._options, 0.0
        if options.steps is not None:
            used = before.steps / options.steps
        if options.minutes is not None:
            used = max(used, before.phases[-1].seconds / 60 / options.minutes)
        return "too little of the budget is left for it" if used > _USED_UP else None


def _placed(metrics: dict[str, Any], method: str, done: int) -> dict[str, Any]:
    """Return metrics with their method, and steps counted from the beginning of the run."""
    counted = {"step": metrics["step"] + done} if "step" in metrics else {}
    return {**metrics, **counted, "method": method}


_NO_SIGNAL = (
    "hardly any group of sampled answers differed in its rewards, at any temperature, and GRPO learns "
    "from differences alone"
)
_NO_GAIN = "it brought nothing on the answers held back"


def nothing_found(task: Task, result: Result, curve: Sequence[dict[str, Any]]) -> TrainError:
    """Return the error of a run that found nothing better than the base, with advice on what was seen."""
    advice = []
    for phase in result.phases:
        rows = [row for row in curve if row.get("method") == phase.method]
        if phase.stopped == "no signal":
            saw = (
                "no signal: all sampled answers of every prompt got the same reward. Give answers to learn "
                "from first, make the task easier, or draw more with --samples"
            )
        elif phase.start_loss is not None:
            loss, *after = (row["validation_loss"] for row in rows if "validation_loss" in row)
            judge = "" if is_text(task.reward) else ", see that the reward judges as you do (--reward)"
            saw = (
                f"on answers held back the loss is {loss:.3f} nats a token at the start and "
                f"{min(after or [loss]):.3f} at best afterwards: add examples{judge}, give it more "
                "--minutes, or another --lr"
            )
        elif phase.why is not None:
            continue
        else:
            saw = (
                f"the reward of answers held back never rose above {phase.start_score:.3f}: give it more "
                "--minutes, check that the reward judges as you would, or give answers to learn from"
            )
        advice.append(f"{phase.method}, {phase.steps} steps: {saw}")
    return TrainError(f"nothing better than the base was found for {task.name}: {'; '.join(advice)}")


@contextmanager
def run_folder(output: Path, *, lead: bool = True) -> Iterator[Path]:
    """Make `output`.run for the processes of one run; TrainError for another run. Its lead process holds the
    lock, and removes the folder at the end where no checkpoint is in it."""
    folder, manifest = (output.with_name(f"{output.name}.{end}") for end in ("run", "json"))
    for path in (output, *([] if folder.is_dir() else [manifest])):  # a killed run may have written that
        if path.exists():
            raise TrainError(f"{path} exists already: choose another output, or remove it first")
    if not output.absolute().parent.is_dir():
        raise TrainError(f"there is no folder {output.parent} to write {output.name} in: make it first")
    folder.mkdir(exist_ok=True)
    if not lead:
        yield folder
        return
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(folder / "run", wait=False))
        except BlockingIOError:
            raise TrainError(f"another process trains to {output}: let it end, or choose another") from None
        try:
            yield folder
        finally:
            lock.close()
            (folder / "run.lock").unlink(missing_ok=True)
            for path in (*folder.glob("*"), folder):
                with suppress(OSError):  # it holds something
                    path.rmdir()


def identity(task: Task, basis: Basis, options: Options) -> dict[str, Any]:
    """Return what a resumed run must share with that of the checkpoint; `options` are the method's own."""
    rows = [[each.prompt, each.answer, each.raw, each.tools, dict(each.data)] for each in task.train]
    # A program's own objects count by their type alone: their texts may differ between processes.
    samples = json.dumps(rows, default=lambda value: type(value).__name__, skipkeys=True)
    prior, shared = basis.projection.prior, ("preamble", "schema", "max_tokens", "temperature")
    return {
        "task": Path(task.name).name,  # wherever it lies
        "reward": name_of(task.reward),
        "prompts_sha256": hashlib.sha256(samples.encode()).hexdigest(),
        "basis": basis.digest,
        "prior": None if prior is None else prior.digest,
        **{name: getattr(task, name) for name in shared},
        **{name: value for name, value in options.record().items() if name not in _ANY},
        "workers": options.workers or cores(),
    }


def unfinished(folder: Path) -> TrainError:
    """Return the error of a new run that would overwrite a checkpoint."""
    return TrainError(
        f"{folder} holds the checkpoint of an unfinished run: go on with --resume, or remove it"
    )


class _Engines:
    """The engines that a run computes with, opened in order and closed in reverse."""

    def __init__(
        self,
        bundle: str | PathLike[str],
        task: Task,
        options: Options,
        methods: Sequence[str],
        stack: ExitStack,
        checkpoint: Path | None,
    ) -> None:
        self.methods, self.stack = methods, stack
        options.split(task)
        self.threads = options.workers or cores()
        stack.enter_context(one_thread())
        self._bundle = load_bundle(bundle)
        self.basis = options.basis(self._bundle.bases)
        self.options = options = options.with_few_bits(self.basis)
        self._identity = partial(identity, task, self.basis)
        if checkpoint is not None:  # of another run it is refused before the model is loaded
            load(checkpoint, self._identity(replace(options, method=methods[0])))
        under, policy = options.under, Policy(keys=options.keys)
        shared = None if under is None else admit(under, self._bundle.bases, policy, beneath=True)
        deployed = runtime.load(bundle, engine="llama", n_ctx=64, n_threads=self.threads)
        self.deployed = stack.enter_context(closing(deployed))
        self.task = task = fitted(task, deployed)
        self.prompts = {id(s): self._tokens(s) for s in (*task.train, *task.held_out)}
        room = self._room()
        self.general = []
        if any(map(options.rehearses, methods)):
            self.general = [self._tokens(sample) for sample in load_general(split="train")]
            room = max(room, *(len(tokens) + REHEARSED_TOKENS for tokens in self.general))
        batch = Batch(self.deployed, n_ctx_seq=room, n_threads=self.threads)
        self.batch = stack.enter_context(batch)
        self.model = load_model(options.weights or self._bundle.base, options.dtype)
        self.adapter = stack.enter_context(Adapter(self.model, self.basis, shared))

    def about(self) -> dict[str, Any]:
        """Return what a run learns from, and how, as its record has it."""
        task = self.task
        validation, train = self.options.split(task)
        return {
            "train": len(train),
            "validation": len(validation),
            "held_out": len(task.held_out),
            "reward": name_of(task.reward),
            "methods": list(self.methods),
            "numbers": self.basis.size,
            "notes": list(task.notes),
        }

    def trainer(
        self, options: Options, checkpoint: Path, needed: float, known: NDArray[np.float64] | None
    ) -> Trainer:
        """Return the loop of one method over these engines; `options` are its own."""
        task, encoders = self.task, {"encode": self._encode, "encode_answer": self._encode_answer}
        judge = Sampled(task, self.batch, encode=self._encode, each=options.samples)
        answers = Demonstrations(task, **encoders) if options.method == "sft" else None
        learner = Learner(self.model, self.adapter, temperature=1.0, workers=self.threads)
        self.stack.callback(learner.close)
        rehearsal = None
        if options.rehearses(options.method):
            rehearsal = Rehearsal(learner, self.batch, self.general)
        return Trainer(
            task,
            learner,
            answers or judge,
            judge,
            options=options,
            checkpoint=checkpoint,
            identity=self._identity(options),
            needed=needed,
            known=known,
            rehearsal=rehearsal,
        )

    def _tokens(self, sample: Sample) -> NDArray[np.int32]:
        return np.array(self.deployed.encode(sample)[0], np.int32)

    def _encode(self, sample: Sample) -> NDArray[np.int32]:
        return self.prompts[id(sample)]

    def _encode_answer(self, sample: Sample) -> NDArray[np.int32]:
        return np.array(self.deployed.encode_answer(sample), np.int32)

    def _room(self) -> int:
        """Return the tokens of the longest prompt with what is drawn or learned behind it."""
        limit, longest, task = self.deployed.longest, 0, self.task
        for name, samples in (("train", task.train), ("held_out", task.held_out)):
            for number, sample in enumerate(samples):
                prompt = len(self._encode(sample))
                answer = 0 if is_text(task.reward) else task.max_tokens  # nothing is drawn
                if "sft" in self.methods and sample.answer is not None:
                    answer = max(answer, len(self._encode_answer(sample)))
                if prompt + answer > limit:
                    raise TrainError(
                        f"task {task.name}, {name} sample {number} ({sample.text[:60]!r}): its prompt has "
                        f"{prompt} tokens, which with {answer} to answer pass the model's context of "
                        f"{limit}: shorten it, or leave it out"
                    )
                longest = max(longest, prompt + answer)
        return longest
