"""One training run from a bundle and a task to a frame file: engines, files, signals, evaluation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import runtime
from ..errors import TrainError
from ..formats.bundle import load_bundle
from ..runtime.batch import Batch
from ..runtime.evaluation import Report
from ..runtime.llama.requantize import half_copy, half_type
from ..system import cores
from ..tasks import Sample, Task
from ..tasks.general import load_general
from .adapter import Adapter
from .batches import REHEARSED_TOKENS, Batches, GivenAnswers, Rehearsal, Sampled
from .learner import Learner
from .measure import measured, write_result
from .model import load_model
from .options import Options, Outcome
from .trainer import Trainer

_SHORT = 256
"""Tokens of a sequence up to which plain attention is faster in the backward pass than the fused one."""

_ANY = ("rank", "numbers", "checkpoint_every", "wire", "evaluate", "drift")
"""Options that a resumed run may have otherwise: of the first two the basis is the same."""


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

    Writes `output` (the frame), `output`.json (task, basis, options, curve, held-out figures) and, while it
    runs, the directory `output`.run with `checkpoint.json`.
    SIGINT ends the run after the step at hand with its state saved; a second one ends it at once. A run that
    is refused leaves no file.

    Args:
        bundle: of the base that is deployed.
        task: prompts and reward.
        output: the frame file; it must not exist.
        options: of the run.
        resume: go on from the checkpoint in `output`.run, to the identical result.
        report: called with the metrics of every step.

    Raises:
        TrainError: the task or the options do not work out; the message says which and what to do.
        BasisError: the bundle has no basis of the rank or the numbers that are asked for.
        BaseMismatchError: the base is not one that the factors were exported for.
        MissingExtraError: torch, transformers or llama-cpp-python is not installed.
        OSError: a file cannot be written.
    """
    options, output = options or Options(), Path(output)
    with run_folder(output) as folder, ExitStack() as stack:
        checkpoint = folder / "checkpoint.json"
        if checkpoint.exists() and not resume:
            raise unfinished(folder)
        engines = _Engines(bundle, task, options, folder, stack)
        trainer = engines.trainer(checkpoint)
        if resume:
            trainer.resume()
        with _interruptible(trainer, report):
            result = trainer.run(report)
        if result.stopped == "interrupted":
            return Outcome(checkpoint, result)
        outcome = Outcome(output, result)
        vector = replace(result.vector, dtype=options.wire)
        curve = trainer.state.curve
        write_result(vector, engines.basis, task, options, outcome, curve)
        checkpoint.unlink()
        if options.evaluate:
            deployed = engines.deployed, engines.batch
            outcome = measured(outcome, bundle, *deployed, task, vector, options, report)
            write_result(vector, engines.basis, task, options, outcome, curve)
    return outcome


@contextmanager
def run_folder(output: Path) -> Iterator[Path]:
    """Make the folder of a run's files, `output`.run, which is removed at the end where it holds no file."""
    if output.exists():
        raise TrainError(f"{output} exists already: choose another output, or remove it first")
    if not output.absolute().parent.is_dir():
        raise TrainError(f"there is no folder {output.parent} to write {output.name} in: make it first")
    folder = output.with_name(f"{output.name}.run")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        for path in (*folder.glob("*"), folder):  # another process may have removed it
            with suppress(OSError):  # it holds something
                path.rmdir()


def unfinished(folder: Path) -> TrainError:
    """Return the error of a run that would begin anew over a checkpoint."""
    return TrainError(
        f"{folder} holds the checkpoint of an unfinished run: go on with --resume, or remove it"
    )


class _Engines:
    """The engines that a run computes with, opened in order and closed in reverse."""

    def __init__(
        self, bundle: str | PathLike[str], task: Task, options: Options, folder: Path, stack: ExitStack
    ) -> None:
        self.task, self.options, self.stack = task, options, stack
        self.threads = options.workers or cores()
        torch.set_num_threads(1)
        found = load_bundle(bundle)
        self.basis = options.basis(found.bases)
        deployed = runtime.load(bundle, engine="llama", n_ctx=64, n_threads=self.threads)
        self.deployed = stack.enter_context(closing(deployed))
        self.prompts = {id(s): self._tokens(s) for s in (*task.train, *task.held_out)}
        longest = max(len(tokens) for tokens in self.prompts.values())
        room = self._room(
            f"the longest prompt of task {task.name} has", longest, task.max_tokens, "shorten it"
        )
        self.general = [self._tokens(sample) for sample in load_general(split="train") if options.keep]
        if options.keep:
            longest = max(map(len, self.general))
            what, cure = "the longest general prompt has", "leave out --keep"
            room = max(room, self._room(what, longest, REHEARSED_TOKENS, cure))
        batch = {"n_ctx_seq": room, "sequences": options.sequences, "n_threads": self.threads}
        self.batch = self.drawing = stack.enter_context(Batch(self.deployed, **batch))
        self.model = load_model(options.weights or found.base, options.dtype)
        if room <= _SHORT:
            self.model.set_attn_implementation("eager")
        self.adapter = stack.enter_context(Adapter(self.model, self.basis))
        self.halved = half_type() is not None if options.half_copy is None else options.half_copy
        if self.halved:
            copy = half_copy(found.base, folder / "rollout", found.bases, self.threads)
            self.drawing = stack.enter_context(Batch(stack.enter_context(copy), **batch))

    def trainer(self, checkpoint: Path) -> Trainer:
        """Return the loop over these engines."""
        task, options = self.task, self.options
        judge = Sampled(
            task,
            self.drawing,
            encode=self._encode,
            decode=lambda tokens: self.deployed.vocabulary.decode(tokens.tolist()),
            each=options.samples,
        )
        batches: Batches = judge
        if options.method == "sft":
            batches = GivenAnswers(task, encode=self._encode, encode_answer=self._encode_answer)
        learner = Learner(
            self.model,
            self.adapter,
            temperature=task.temperature if options.method == "grpo" else 1.0,
            workers=self.threads,
        )
        self.stack.callback(learner.close)
        shared = {key: value for key, value in options.record().items() if key not in _ANY}
        return Trainer(
            task,
            learner,
            batches,
            judge,
            options=options,
            checkpoint=checkpoint,
            identity=shared | {"half_copy": self.halved, "workers": self.threads},
            rehearsal=Rehearsal(learner, self.drawing, self.general) if options.keep else None,
        )

    def _tokens(self, sample: Sample) -> NDArray[np.int32]:
        return np.array(self.deployed.encode(sample)[0], np.int32)

    def _encode(self, sample: Sample) -> NDArray[np.int32]:
        return self.prompts[id(sample)]

    def _encode_answer(self, sample: Sample) -> NDArray[np.int32]:
        """Return an answer with the token that ends it: the chat's, where the model has a template."""
        text = self.deployed.tokenize(str(sample.answer).encode(), add_bos=False, special=False)
        vocabulary = self.deployed.vocabulary
        chat = not sample.raw and vocabulary.has_template
        return np.array([*text, vocabulary.turn_end if chat else self.deployed.token_eos()], np.int32)

    def _room(self, what: str, longest: int, answer: int, cure: str) -> int:
        limit = self.deployed._model.n_ctx_train()
        if longest + answer > limit:
            raise TrainError(
                f"{what} {longest} tokens, which with {answer} to generate passes the model's context of "
                f"{limit}: {cure}"
            )
        return longest + answer


@contextmanager
def _interruptible(trainer: Trainer, report: Report) -> Iterator[None]:
    """Let SIGINT end the run after the step at hand; a second one as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        trainer.stop()
        report({"event": "stopping"})

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
