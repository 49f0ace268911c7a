"""One training run from a bundle and a task to a frame file: engines, files, signals, evaluation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import runtime
from ..errors import TrainError
from ..formats.bundle import Bundle
from ..runtime.batch import Batch
from ..runtime.drift import Drift, drift_beside
from ..runtime.evaluation import evaluate
from ..runtime.llama.model import TinyLoraLlama
from ..runtime.llama.prompts import decode, encode, has_template, turn_end
from ..runtime.llama.requantize import half_copy, half_type
from ..runtime.tuning.settings import Report
from ..system import cores
from ..tasks import Sample, Task
from ..tasks.general import load_general
from ..vector import MicroVector
from .adapter import Adapter
from .batches import ANCHOR_TOKENS, Anchor, Batches, GivenAnswers, Sampled
from .learner import Learner
from .model import load_model
from .options import Options, Outcome
from .output import metrics_file, run_folder, write_result
from .trainer import Trainer

_SHORT = 256
"""Tokens of a sequence up to which plain attention is faster in the backward pass than the fused one."""


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

    Writes `output` (the frame), `output`.json (task, digest, settings, curve, held-out figures) and, while
    it runs, the directory `output`.run with `checkpoint.npz` and `metrics.jsonl`.
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
        BaseMismatchError: the base is not one that the basis was exported for.
        MissingExtraError: torch, transformers or llama-cpp-python is not installed.
        OSError: a file cannot be written.
    """
    options = options or Options()
    output = Path(output)
    if output.exists():
        raise TrainError(f"{output} exists already: choose another output, or remove it first")
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder(output))
        engines = Engines(bundle, task, options, folder, stack)
        trainer = engines.trainer(folder / "checkpoint.npz")
        if resume:
            trainer.resume()
        elif (folder / "checkpoint.npz").exists():
            raise TrainError(
                f"{folder} holds the checkpoint of an unfinished run: go on with --resume, or remove it"
            )
        write = stack.enter_context(metrics_file(folder, trainer.state.step, report))
        with _interruptible(trainer, report):
            result = trainer.run(write)
        vector = replace(result.vector, dtype=options.wire, sequence=options.sequence)
        base = personalized = drift = None
        if options.evaluate and result.stopped != "interrupted":
            base = evaluate(engines.deployed_batch, task, None)
            personalized = evaluate(engines.deployed_batch, task, vector)
            drift = engines.drift(vector, write)
        if result.stopped != "interrupted":
            outcome = Outcome(output, result, base, personalized, drift)
            write_result(output, folder, vector, engines.basis, task, options, outcome)
            (folder / "checkpoint.npz").unlink(missing_ok=True)
            return outcome
    return Outcome(folder / "checkpoint.npz", result, None, None)


class Engines:
    """The engines that a run computes with, opened in order and closed in reverse.

    `adapt` and `batch_over` say what learns. A subclass that trains something else than v, such as a LoRA to
    compare it with, overrides both; `trainer` is then the same loop.
    """

    def __init__(
        self, bundle: str | PathLike[str], task: Task, options: Options, folder: Path, stack: ExitStack
    ) -> None:
        if options.half_copy is None:
            options = replace(options, half_copy=half_type() is not None)
        self.task, self.options = task, options
        self.threads = options.workers or cores()
        torch.set_num_threads(1)
        found = Bundle.find(bundle)
        self.basis = found.basis
        deployed = runtime.load(bundle, engine="llama", n_ctx=64, n_threads=self.threads)
        self.deployed = stack.enter_context(closing(deployed))
        self.prompts = {id(s): encode(self.deployed, s) for s in (*task.train, *task.held_out)}
        longest = max(len(tokens) for tokens in self.prompts.values())
        self._check_context(longest)
        self._longest = longest + task.max_tokens
        self._anchored = self._general() if options.settings.anchor else []
        self.deployed_batch = stack.enter_context(self.batch_over(self.deployed))
        source = options.weights or found.base
        self.model = load_model(source, options.dtype)
        if self._longest <= _SHORT:
            self.model.set_attn_implementation("eager")
        self.adapter = stack.enter_context(self.adapt())
        temperature = task.temperature if options.method == "grpo" else 1.0
        self.learner = Learner(self.model, self.adapter, temperature=temperature, workers=self.threads)
        stack.callback(self.learner.close)
        self.drawing = self._drawing_batch(found.base, folder, stack)
        self.anchor = self._anchor(stack) if self._anchored else None

    def trainer(self, checkpoint: Path) -> Trainer:
        """Return the loop over these engines."""
        options = self.options
        judge = Sampled(
            self.task,
            self.drawing,
            encode=self._encode,
            decode=lambda tokens: decode(self.deployed, tokens),
            each=options.samples,
            loss=options.loss,
        )
        batches: Batches = judge
        if options.method == "sft":
            batches = GivenAnswers(self.task, encode=self._encode, encode_answer=self._encode_answer)
        drawing = ("method", "loss", "samples", "half_copy", "sequences")
        shared = (*drawing, "weights", "dtype", "start")
        identity = {k: v for k, v in asdict(options).items() if k in shared} | {"workers": self.threads}
        return Trainer(
            self.task,
            self.basis,
            self.learner,
            batches,
            judge,
            settings=options.settings,
            checkpoint=checkpoint,
            identity=identity,
            anchor=self.anchor,
            start=self._start(),
        )

    def _start(self) -> NDArray[np.float32]:
        """Return the values before the first step, in the adapter's shape."""
        given, usual = self.options.start, self.adapter.start
        if given is None:
            return usual
        if len(given) != usual.size:
            raise TrainError(
                f"training would start from {len(given)} values, and the basis has {usual.size}: give a "
                "vector of this basis"
            )
        return np.array(given, np.float32).reshape(usual.shape)

    def adapt(self) -> Adapter:
        """Return what learns, attached to `model`."""
        return Adapter(self.model, self.basis)

    def batch_over(self, llm: TinyLoraLlama) -> Batch:
        """Return a batch over a deployed model, whose `swap` takes the values of what learns."""
        room: dict[str, Any] = {"sequences": self.options.sequences, "n_threads": self.threads}
        return Batch(llm, n_ctx_seq=self._longest, **room)

    def drift(self, vector: MicroVector, report: Report) -> Drift | None:
        """Measure how far a vector moves the deployed model from its base; None where that is left out.

        Where it is not possible, that is reported, and the run is not lost for it.
        """
        return drift_beside(
            self.deployed,
            vector,
            count=self.options.drift,
            complain=lambda why: report({"event": "no drift", "why": why}),
            sequences=self.options.sequences,
            n_threads=self.threads,
        )

    def _general(self) -> list[NDArray[np.int32]]:
        """The general prompts to hold v near the base on, and room for the base's answers to them."""
        prompts = [encode(self.deployed, sample) for sample in load_general(split="train")]
        longest, limit = max(map(len, prompts)) + ANCHOR_TOKENS, self.deployed._model.n_ctx_train()
        if longest > limit:
            raise TrainError(
                f"the general prompts and their answers have up to {longest} tokens, which passes the "
                f"model's context of {limit}: leave out the anchor"
            )
        self._longest = max(self._longest, longest)
        return prompts

    def _anchor(self, stack: ExitStack) -> Anchor:
        settings = self.options.settings
        learner = Learner(self.model, self.adapter, temperature=1.0, workers=self.threads)
        stack.callback(learner.close)
        return Anchor(learner, self.drawing, self._anchored, weight=settings.anchor, seed=settings.seed)

    def _encode(self, sample: Sample) -> NDArray[np.int32]:
        return self.prompts[id(sample)]

    def _encode_answer(self, sample: Sample) -> NDArray[np.int32]:
        text = self.deployed.tokenize(str(sample.answer).encode(), add_bos=False, special=False)
        return np.array([*text, self.deployed.token_eos() if sample.raw else self._answer_end], np.int32)

    @cached_property
    def _answer_end(self) -> int:
        """The token that ends an answer that is no raw text: the chat's, where the model has a template."""
        return turn_end(self.deployed) if has_template(self.deployed) else self.deployed.token_eos()

    def _check_context(self, longest: int) -> None:
        limit = self.deployed._model.n_ctx_train()
        if longest + self.task.max_tokens > limit:
            raise TrainError(
                f"the longest prompt of task {self.task.name} has {longest} tokens, which with "
                f"{self.task.max_tokens} to generate passes the model's context of {limit}: shorten it"
            )

    def _drawing_batch(self, base: Path, folder: Path, stack: ExitStack) -> Batch:
        if not self.options.half_copy:
            return self.deployed_batch
        copy = half_copy(base, folder / "rollout", self.basis, self.threads)
        return stack.enter_context(self.batch_over(stack.enter_context(copy)))


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
