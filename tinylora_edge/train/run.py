"""One training run from a bundle and a task to a frame file: engines, files, signals, evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
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
from ..eval.measure import Measuring, expected_seconds, fitted
from ..formats.bundle import Bundle, BundleOrPath, load_bundle
from ..process import cores, first_interrupt
from ..runtime.batch import Batch
from ..runtime.learning.state import Report
from ..runtime.model import PersonalizedModel, admit
from ..tasks import Sample, Task
from ..tasks.load import load_general
from ..tasks.rewards import is_text
from ..tasks.sample import CALL_BEGIN, without_tags
from ..tasks.task import name_of
from ..vector import MicroVector, Policy
from ..writes import atomic_write, locked
from .adapter import Adapter, default_dtype, load_model, one_thread
from .batches import REHEARSED_TOKENS, Answers, Rehearsal
from .learner import Learner
from .options import METHODS, MINUTES, Options, Outcome, Phase, Result, write_result
from .texts import framing, in_full_steps, learn_task, make_whitening, weights_of, whitening_path
from .trainer import DIFFER, Trainer, read_checkpoint

_ANY = ("minutes", "rank", "numbers", "checkpoint_every", "keys", "sequence", "evaluate", "whitening")
"""Options that may differ in a resumed run: whatever rank or numbers say, the basis has to be the same."""

_ALIKE = 0.02
"""Largest distance of two untrained rows of the output layer, relative to their length. In Qwen2.5-Coder
untrained rows are .004 apart, and trained ones .4."""

_USED_UP = 0.8
"""Share of the budget which, once used, leaves GRPO no time to find a temperature and learn."""


def train(
    bundle: BundleOrPath,
    task: Task,
    output: str | PathLike[str],
    *,
    options: Options | None = None,
    resume: bool = False,
    report: Report = lambda metrics: None,
) -> Outcome:
    """Train a micro-vector and write its frame.

    SFT ends where validation gets no better, and GRPO goes on from its vector with the rest of the budget
    (`Options.method`). `Result.phases` says what each method did, or why it was left out. Texts without
    prompts on a shared vector are learned in full steps (`texts`), where no budget is given. Beside a vector
    of such texts that stands on the base, `output`.whitening is for those that will stand on it.

    Writes `output` (the frame), `output`.json (task, basis, options, curve, held-out figures) and, while it
    runs, the directory `output`.run with a checkpoint a method.
    SIGINT ends the run after the step at hand with its state saved; a second one ends it at once. A run that
    is refused, or finds nothing, leaves no file; but where its minutes were over, it can go on with more.

    Args:
        bundle: of the base that is deployed.
        task: prompts and reward.
        output: the frame file; it must not exist.
        options: of the run.
        resume: go on from the checkpoints in `output`.run, on this machine to the identical result where no
            minutes are set. Where neither steps nor minutes are given, it has the minutes that it had, and
            without a dtype the one that it had.
        report: called with the metrics of every step, and with events.

    Raises:
        TrainError: the task and the options do not go together, or nothing better than the base was found;
            the message says what to do.
        BasisError: the bundle has no basis of the rank or the numbers that are asked for.
        VectorError: the shared vector is refused, or the start has another number of values than the basis.
        BaseMismatchError: the base is not one that the factors were exported for.
        MissingExtraError: torch, transformers or the bundle's engine is not installed.
        OSError: a file cannot be written.
    """
    options, output, found = options or Options(), Path(output), load_bundle(bundle)
    with run_folder(output) as folder, ExitStack() as stack:
        checkpoints = {method: folder / f"{method}.json" for method in METHODS}
        if not resume and any(path.exists() for path in checkpoints.values()):
            raise unfinished(folder)
        methods = chosen_methods(task, options)
        first = checkpoints[methods[0]]
        if resume and not first.exists():
            held = [f"go on with --method {method}" for method, path in checkpoints.items() if path.exists()]
            advice = (*held, "start without --resume")[0]
            raise TrainError(f"{folder} has no {first.name} to resume from: {advice}")
        if in_full_steps(task, options):
            return learn_task(found, task, output, options, report)
        run = _Run(found, task, options, methods, checkpoints, stack, report)
        task, options = run.task, run.options
        about = run.about()
        report({"event": "data", **about})
        with first_interrupt(run.stop):
            result = run.phases()
        if run.stopping:
            return Outcome(folder, result)
        vector = options.framed(result.vector, run.basis)
        outcome = Outcome(output, replace(result, vector=vector))
        written = vector, run.basis, task, options
        if better := vector.values.any():
            write_result(*written, outcome, run.curve, data=about)
        ends = [phase.stopped for phase in result.phases]
        # The checkpoint of a method whose minutes were over is kept, so that it can go on with more minutes.
        # Later methods began from its end: their checkpoints go.
        over = "done" in ends and result.steps != options.steps
        kept = 1 + ends.index("done") if over and not better else 0
        for method, path in checkpoints.items():
            if method not in methods[:kept]:
                path.unlink(missing_ok=True)
        if not better:
            raise nothing_found(task, result, run.curve, folder if kept else None)
        if options.evaluate:
            run.batch.close()
            judged, _ = options.split(task)
            size = len(vector.to_bytes(run.basis))
            measuring = Measuring(run.deployed, task, vector, size, report, run.threads, judged)
            outcome = replace(outcome, measured=measuring.run())
            write_result(*written, outcome, run.curve, data=about)
    if is_text(task.reward) and task.train[0].unprompted and options.under is None:
        report({"event": "whitening"})
        shared = replace(options, under=output.read_bytes(), keys=())
        with atomic_write(whitening_path(output)) as file:
            file.write(make_whitening(found, shared, task.train))
    return outcome


def chosen_methods(task: Task, options: Options) -> list[str]:
    """Return the methods of a run, in order. TrainError: the task has nothing that one learns from."""
    free, missing = is_text(task.reward), sum(sample.answer is None for sample in task.train)
    fitting = [method for method, fits in (("sft", free or not missing), ("grpo", not free)) if fits]
    methods = fitting if options.method is None else [options.method]
    if free and "grpo" in methods:
        raise TrainError(
            f"task {task.name} is measured by the text of its answers, which no reward judges: GRPO has "
            "nothing to learn from. Leave --method out, or name a reward with --reward"
        )
    if missing and "sft" in methods:
        raise TrainError(
            f"{missing} of {len(task.train)} training prompts of task {task.name} have no answer: SFT needs "
            "one for each"
        )
    return methods


class _Run:
    """The phases of a run, one after the other, over engines that all of them use.

    Each method has a checkpoint. A first method's checkpoint that is of another run is refused before a model
    is loaded. `stack` closes what the run opens.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        options: Options,
        methods: Sequence[str],
        checkpoints: Mapping[str, Path],
        stack: ExitStack,
        report: Report,
    ) -> None:
        self.stopping = False
        self.curve: list[dict[str, Any]] = []
        self._methods, self._checkpoints, self._stack, self._report = methods, checkpoints, stack, report
        self._trainer: Trainer | None = None
        self._known: NDArray[np.float64] | None = None  # validation rewards of what the last phase found
        options.split(task)
        self.threads = options.workers or cores()
        stack.enter_context(one_thread())
        self.basis = options.basis(bundle.bases)
        self.options = options = framing(options, self.basis)
        self._identity = partial(identity, task, self.basis)
        minutes, dtype = MINUTES, None
        if (first := checkpoints[methods[0]]).exists():
            kept = read_checkpoint(first, self._identity(replace(options, method=methods[0])))
            minutes, dtype = kept.minutes or MINUTES, kept.dtype
        options = replace(options, dtype=options.dtype or dtype or default_dtype())
        if options.steps is None and options.minutes is None:
            options = replace(options, minutes=minutes)
        self.options = options
        shared = None
        if options.under is not None:
            shared = admit(options.under, bundle.bases, Policy(keys=options.keys), beneath=True)
        weights = weights_of(bundle, options)
        deployed = runtime.load(bundle, n_ctx=64, n_threads=self.threads)
        self.deployed = stack.enter_context(closing(deployed))
        self._model = load_model(weights, options.dtype)
        self.task = fitted(in_own_form(task, deployed, self._model), deployed)
        room = self._room()
        self._general: list[NDArray[np.int32]] = []
        if any(map(options.rehearses, methods)):
            prompts = [deployed.encode(sample)[0] for sample in load_general(split="train")]
            self._general = [np.array(tokens, np.int32) for tokens in prompts]
            room = max(room, *(len(tokens) + REHEARSED_TOKENS for tokens in prompts))
        self.batch = stack.enter_context(Batch(deployed, n_ctx_seq=room, n_threads=self.threads))
        self._adapter = stack.enter_context(Adapter(self._model, self.basis, shared))

    def about(self) -> dict[str, Any]:
        """Return what the run learns from, and how, as its record has it."""
        validation, train = self.options.split(self.task)
        return {
            "train": len(train),
            "validation": len(validation),
            "held_out": len(self.task.held_out),
            "reward": name_of(self.task.reward),
            "methods": list(self._methods),
            "numbers": self.basis.size,
            "notes": list(self.task.notes),
        }

    def stop(self) -> None:
        """End the run after the step at hand, its state saved."""
        self.stopping = True
        if self._trainer is not None:
            self._trainer.stop()
        self._report({"event": "stopping"})

    def phases(self) -> Result:
        """Run the methods that are worth it, each from what the one before found."""
        result = Result(MicroVector.zeros(self.basis), ())
        for method in self._methods:
            if self._used_up(result) and not self._checkpoints[method].exists():
                vector, score = result.vector, result.best_score
                why = _STILL_GAINING if result.phases[-1].gaining else _USED
                phase = Phase(method, score, score, why=why)
            else:
                vector, phase = self._phase(method, result)
                if result.phases and not phase.best_step and phase.stopped != "interrupted":
                    phase = replace(phase, why=_NO_SIGNAL if phase.stopped == "no signal" else _NO_GAIN)
            result = Result(vector, (*result.phases, phase))
            if self.stopping:
                break
        return result

    def _phase(self, method: str, before: Result) -> tuple[MicroVector, Phase]:
        """Run a method from what was found before it, or resume it from its checkpoint."""
        options, done, minutes = self.options, before.steps, self.options.minutes
        if before.best_step:
            options = replace(options, start=tuple(before.vector.values.tolist()))
        if minutes is not None and (minutes := minutes - before.seconds / 60) <= 0:
            raise TrainError(
                f"{options.minutes:g} minutes are over: what came before {method} took "
                f"{before.seconds / 60:.1f}. Allow more minutes"
            )
        steps = None if options.steps is None else options.steps - done
        options = replace(options, method=method, steps=steps, minutes=minutes)
        behind = self._methods[self._methods.index(method) + 1 :]
        learner = Learner(self._model, self._adapter, temperature=1.0, workers=self.threads)
        self._stack.callback(learner.close)
        self._trainer = trainer = Trainer(
            learner,
            Answers(self.task, self.batch, options.samples),
            options=options,
            checkpoint=self._checkpoints[method],
            identity=self._identity(options),
            followed=any(self._checkpoints[each].exists() for each in behind),
            needed=DIFFER if before.phases else 0.0,
            known=self._known,
            rehearsal=Rehearsal(learner, self.batch, self._general) if options.rehearses(method) else None,
        )
        if self.stopping:
            trainer.stop()

        def told(metrics: dict[str, Any]) -> None:
            self._report(_placed(metrics, method, done))
            if metrics.get("event") == "start" and not before.phases and options.evaluate:
                answer_s = metrics["validate_s"] / len(options.split(self.task)[0])
                self._report({"event": "estimate", "seconds": expected_seconds(self.task, answer_s)})

        found = trainer.run(told)
        self._trainer, self._known = None, trainer.state.best_scores
        self.curve += [_placed(row, method, done) for row in trainer.state.curve]
        return found

    def _used_up(self, before: Result) -> bool:
        """Whether what was done before a method leaves too little of the budget for it."""
        steps, minutes = self.options.steps, self.options.minutes
        of_steps = 0.0 if steps is None else before.steps / steps
        of_minutes = 0.0 if minutes is None else before.seconds / 60 / minutes
        return max(of_steps, of_minutes) > _USED_UP

    def _room(self) -> int:
        """Return the tokens of the longest prompt with its answer, drawn or learned."""
        llm, longest, task = self.deployed, 0, self.task
        for name, samples in (("train", task.train), ("held_out", task.held_out)):
            for number, sample in enumerate(samples):
                prompt = len(llm.encode(sample)[0])
                answer = 0 if is_text(task.reward) else task.max_tokens  # nothing is drawn
                if "sft" in self._methods and sample.answer is not None:
                    answer = max(answer, len(llm.encode_answer(sample)))
                if prompt + answer > llm.longest:
                    raise TrainError(
                        f"task {task.name}, {name} sample {number} ({sample.text[:60]!r}): its prompt has "
                        f"{prompt} tokens, which with {answer} to answer pass the model's context of "
                        f"{llm.longest}: shorten it, or leave it out"
                    )
                longest = max(longest, prompt + answer)
        return longest


def in_own_form(task: Task, llm: PersonalizedModel, model: Any) -> Task:
    """Return a task whose calls are in a form that the model, in transformers `model`, can learn to write.

    Qwen2.5-Coder has a token `<tool_call>` that was never trained. Its row of the output layer is that of
    hundreds of unused tokens, so that no vector makes it likelier than those. Such a model writes a call as a
    fence of JSON, which is recognized too. TrainError: an answer is more than one call.
    """
    tag, *more = llm.chat_tokenizer.encode_plain(CALL_BEGIN)
    tagged = [sample for sample in task.train if CALL_BEGIN in str(sample.answer)]
    if more or not tagged:
        return task
    own, last = model.get_output_embeddings().weight[[tag, -1]].float()
    if (own - last).norm() > _ALIKE * last.norm():
        return task

    def fenced(sample: Sample) -> Sample:
        if CALL_BEGIN not in (answer := str(sample.answer)):
            return sample
        if (found := without_tags(answer)) is None:
            raise TrainError(
                f"task {task.name}: the model was never trained to write {CALL_BEGIN}, and the answer "
                f"{answer[:80]!r} is not one call alone, which it could write without: leave it out"
            )
        return replace(sample, answer=found)

    note = f"calls are learned as a fence of JSON: the model was never trained to write {CALL_BEGIN}"
    train, held_out = ([*map(fenced, samples)] for samples in (task.train, task.held_out))
    return replace(task, train=train, held_out=held_out, notes=(*task.notes, note))


def _placed(metrics: dict[str, Any], method: str, done: int) -> dict[str, Any]:
    """Return metrics with their method, and steps counted from the beginning of the run."""
    counted = {"step": metrics["step"] + done} if "step" in metrics else {}
    return {**metrics, **counted, "method": method}


_NO_SIGNAL = (
    "hardly any group of sampled answers differed in its rewards, at any temperature, and GRPO learns "
    "from differences alone"
)
_USED = "too little of the budget is left for it"
_STILL_GAINING = "what came before it was still gaining, and took the budget"
_NO_GAIN = "it brought nothing on the answers held back"


def nothing_found(
    task: Task, result: Result, curve: Sequence[dict[str, Any]], kept: Path | None
) -> TrainError:
    """Return the error of a run that found nothing better than the base, with advice on what was seen.

    `kept` is the folder whose checkpoints go on with more minutes.
    """
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
    if kept is not None:
        advice.append(f"to go on from there, give --resume and more --minutes; to begin anew, remove {kept}")
    return TrainError(f"nothing better than the base was found for {task.name}: {'; '.join(advice)}")


@contextmanager
def run_folder(output: Path, *, lead: bool = True) -> Iterator[Path]:
    """Make the folder `output`.run for all processes of a run, and yield it.

    The lead process locks it, and at the end removes it where no checkpoint is in it. TrainError: something
    is at the output already, or another run holds the lock.
    """
    folder, manifest = (output.with_name(f"{output.name}.{end}") for end in ("run", "json"))
    # A manifest beside a run's folder is that of a run that was killed before it wrote the frame.
    for path in (output, *([] if folder.is_dir() else [manifest])):
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
            lock.enter_context(locked(folder / "run", wait=False, keep=False))
        except BlockingIOError:
            raise TrainError(
                f"another process writes {output}: wait for it, or choose another output"
            ) from None
        try:
            yield folder
        finally:
            lock.close()
            for path in (*folder.glob("*"), folder):
                with suppress(OSError):  # a file, or a folder that holds something
                    path.rmdir()


def identity(task: Task, basis: Basis, options: Options) -> dict[str, Any]:
    """Return what a resumed run must share with the run of the checkpoint; `options` are the method's own.

    Options without a dtype share any.
    """
    rows = [[each.prompt, each.answer, each.raw, each.tools, dict(each.data)] for each in task.train]
    # Objects that are no JSON count by their type alone: their `repr` may differ between processes.
    samples = json.dumps(rows, default=lambda value: type(value).__name__, skipkeys=True)
    prior, shared = basis.projection.prior, ("preamble", "schema", "max_tokens", "temperature")
    own = {name: value for name, value in options.record().items() if name not in _ANY}
    if options.dtype is None:
        del own["dtype"]
    return {
        "task": Path(task.name).name,  # not its folder: the file may have been moved
        "reward": name_of(task.reward),
        "prompts_sha256": hashlib.sha256(samples.encode()).hexdigest(),
        "basis": basis.digest,
        "prior": None if prior is None else prior.digest,
        **{name: getattr(task, name) for name in shared},
        **own,
        "workers": options.workers or cores(),
    }


def unfinished(folder: Path) -> TrainError:
    """Return the error of a new run that would overwrite a checkpoint."""
    return TrainError(
        f"{folder} holds the checkpoint of an unfinished run: go on with --resume, or remove it"
    )
