"""The training loop: collect, step; validate, keep the best, go back from a collapse."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import TrainError
from ..runtime.evaluation import Report
from ..tasks import Sample, Task
from ..tasks.task import name_of
from ..vector import MicroVector
from .batches import KEEP, Batches, Rehearsal, Sampled
from .checkpoint import TrainState, load, save
from .learner import Group, Learner
from .options import Options, Result

_BETAS = 0.9, 0.99
_ANNEAL = 0.1  # step size of the last step over that of the first
_CLIP = 2.0  # times the median norm of the last gradients
_CLIP_WINDOW = 10
_TOLERANCE = 0.2  # how far validation may fall below the best before training goes back to it
_LENGTHS = {"sft": 3.5, "grpo": 0.5}


def default_lr(basis: Basis, method: str) -> float:
    """Return the step size where none is given: a first step has one length in R for all bases.

    Adam's first step is +-lr in each of the n numbers. In R its Frobenius norm is lr |P| in the mean, P being
    the map v -> R. R is relative to the singular values (R = x I scales the leading part of a weight by
    1 + x), so its unit is the same in every module. The lengths are the best of grids (docs/EVIDENCE.md).
    """
    return _LENGTHS[method] / basis.projection.norm


class Trainer:
    """The loop that trains v, which the learner's adapter holds.

    `batches` gives the groups of each step. `judge` scores greedy answers to the validation prompts, the
    first `Options.validation` of the task's, which are not trained on. `identity` is what else than task and
    basis a resumed run must share.

    Raises:
        TrainError: the task has too few prompts, or the values to start from are not those of the basis.
    """

    def __init__(
        self,
        task: Task,
        learner: Learner,
        batches: Batches,
        judge: Sampled,
        *,
        options: Options,
        checkpoint: Path,
        identity: dict[str, Any],
        rehearsal: Rehearsal | None = None,
    ) -> None:
        basis = learner.adapter.basis
        self.task, self.learner, self.options = task, learner, options
        self._batches, self._judged, self._rehearsal = batches, judge, rehearsal
        self._checkpoint = checkpoint
        self._identity = {
            "task": task.name,
            "preamble": task.preamble,
            "reward": name_of(task.reward),
            "max_tokens": task.max_tokens,
            "temperature": task.temperature,
            "prompts_sha256": _digest(task.train),
            "basis": basis.digest,
            "prior": None if basis.prior is None else basis.prior.digest,
            **identity,
        }
        held = options.validation
        if held < 2:
            raise TrainError(f"{held} prompts for validation: at least 2 are needed to tell luck from gain")
        if len(task.train) < held + options.prompts:
            raise TrainError(
                f"task {task.name} has {len(task.train)} training prompts, but {held} for validation and "
                f"{options.prompts} a step are needed: add prompts, or lower those settings"
            )
        self._validation, self._train = list(task.train[:held]), list(task.train[held:])
        if options.start is not None and len(options.start) != basis.size:
            raise TrainError(
                f"training would start from {len(options.start)} values, and the basis has {basis.size}: "
                "give as many, or make them of another vector's with train.grown"
            )
        self.basis = basis
        self.state = TrainState.start(np.array(options.start or [0.0] * basis.size, np.float32))
        self._stop = False

    def resume(self) -> None:
        """Go on from the checkpoint."""
        self.state = load(self._checkpoint, self._identity)
        self._judged.lowest = self.state.lowest

    def stop(self) -> None:
        """End the run after the step at hand, its state saved; safe to call from a signal handler."""
        self._stop = True

    def run(self, report: Report = lambda metrics: None) -> Result:
        """Train until the last step, silence, or `stop`; a TrainError where no step had any signal."""
        state, options = self.state, self.options

        def write(metrics: dict[str, Any]) -> None:
            state.curve.append(metrics)
            report(metrics)

        if state.step == 0:
            began = time.monotonic()
            state.top_scores = self.validate(state.v)
            state.start_score = state.best_score = float(state.top_scores.mean())
            took = time.monotonic() - began
            state.curve.clear()
            write({"event": "start", "validation": state.start_score, "validate_s": took})
        stopped = "done"
        while state.step < options.steps and not self._stop:
            metrics = self._step()
            state.step += 1
            last = state.step == options.steps
            if state.step % options.validate_every == 0 or last:
                began = time.monotonic()
                metrics["validation"] = self._judge(write)
                metrics["validate_s"] = time.monotonic() - began
            write(metrics)
            if state.silent >= options.silence:
                stopped = "silence"
                break
            if state.step % options.checkpoint_every == 0:
                self._save()
        self._save()
        if self._stop and stopped == "done":  # in the last step too: what follows takes its time as well
            stopped = "interrupted"
        silent = state.silent and not state.lr  # which is set at the first step that had signal
        if silent and stopped != "interrupted":
            raise TrainError(
                f"task {self.task.name} gives no signal: in {state.silent} steps all samples of every prompt "
                "got the same reward. Make the task easier or harder, raise the temperature, or draw more "
                "samples a prompt"
            )
        best = self._vector(state.best_v)
        return Result(best, state.start_score, state.best_score, state.best_step, state.step, stopped)

    def validate(self, v: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the rewards of greedy answers to the validation prompts: float64 [prompts]."""
        seed = self.options.seed, 0
        vector = self._vector(v)
        _, rewards = self._judged.draw(vector, self._validation, each=1, temperature=0.0, seed=seed)
        return np.array(rewards, np.float64)[:, 0]

    def _vector(self, v: NDArray[np.float32]) -> MicroVector:
        return MicroVector(v, basis=self.basis.digest)

    def _step(self) -> dict[str, Any]:
        state = self.state
        seed = (self.options.seed, 1, state.step)
        groups, found = self._batches.collect(self._vector(state.v), self._pick(state.step), seed)
        metrics: dict[str, Any] = {"step": state.step + 1, **found}
        began = time.monotonic()
        if groups:
            metrics |= self._learn(groups)
            state.silent = 0
        else:
            # Not even Adam's momentum moves v: it would drift on without evidence.
            state.silent += 1
        metrics |= {"norm": float(np.linalg.norm(state.v)), "learn_s": time.monotonic() - began}
        return metrics

    def _learn(self, groups: list[Group]) -> dict[str, Any]:
        state, options = self.state, self.options
        self.learner.adapter.set(state.v)
        if not state.lr:
            state.lr = options.lr or default_lr(self.basis, options.method)
        result: dict[str, Any] = {}
        gradient = self.learner.gradient(groups)
        by_v = gradient.grad
        if self._rehearsal is not None:
            pull = self._rehearsal.gradient(state.v, state.step)
            by_v = by_v + KEEP * pull.grad
            result["moved"] = pull.loss
        grad = self._by_z(by_v.numpy().astype(np.float32))
        norm = float(np.linalg.norm(grad))
        if not np.isfinite(norm):
            return result | {"skipped": "non-finite gradient"}
        limit = _CLIP * float(np.median(state.norms)) if state.norms else norm
        state.norms = [*state.norms, norm][-_CLIP_WINDOW:]
        lr = state.lr * (1 - (1 - _ANNEAL) * state.step / max(options.steps - 1, 1))
        self._update(grad * min(1.0, limit / max(norm, 1e-30)), lr)
        return result | {"grad": norm, "lr": lr, "mismatch": gradient.mismatch}

    def _update(self, grad: NDArray[np.float32], lr: float) -> None:
        """One step of Adam (Kingma & Ba, 2015).

        Its steps are as long in every coordinate, and are taken in those in which all directions are as
        likely to be wanted: the gradient and both moments are by z (`Basis.whitening`), the step goes to v.
        """
        state = self.state
        state.updates += 1
        first, second = _BETAS
        state.m = first * state.m + (1 - first) * grad
        state.s = second * state.s + (1 - second) * grad**2
        m = state.m / (1 - first**state.updates)
        s = state.s / (1 - second**state.updates)
        state.v = (state.v - self._by_v(lr * m / (np.sqrt(s) + 1e-8))).astype(np.float32)

    def _by_z(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.basis.whitening.gradient(gradient), np.float32)

    def _by_v(self, step: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.basis.whitening.values(step), np.float32)

    def _judge(self, report: Report) -> float:
        """Validate; keep what is as good as the highest so far, or go back from a collapse."""
        state = self.state
        scores = self.validate(state.v)
        score, top = float(scores.mean()), float(state.top_scores.mean())
        if as_good(scores, state.top_scores) and score > state.start_score:
            state.best_v, state.best_score, state.best_step = state.v.copy(), score, state.step
        if score > top:
            state.top_scores = scores
        elif score < top - _TOLERANCE:
            state.v = state.best_v.copy()
            state.m, state.s, state.updates = np.zeros_like(state.m), np.zeros_like(state.s), 0
            state.lr /= 2
            went = {"validation": score, "best": top, "lr": state.lr}
            report({"event": "back-off", "step": state.step, **went})
        return score

    def _pick(self, step: int) -> list[Sample]:
        """The prompts of a step: every epoch visits all of them in an order of its own."""
        size, count = self.options.prompts, len(self._train)
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, count)
            order = np.random.default_rng((self.options.seed, 3, epoch)).permutation(count)
            chosen.append(self._train[order[offset]])
        return chosen

    def _save(self) -> None:
        self.state.lowest = self._judged.lowest
        save(self._checkpoint, self.state, self._identity)


def _digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of prompts and answers in their order, with whatever else a reward is given."""
    rows = [[each.prompt, each.answer, each.raw, dict(each.data)] for each in samples]
    # Of objects of a program's own the type has to do: their texts may differ from process to process.
    text = json.dumps(rows, default=lambda value: type(value).__name__, skipkeys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def as_good(scores: NDArray[np.float64], top: NDArray[np.float64]) -> bool:
    """Whether scores are no lower than the highest so far, but for one standard error of the difference.

    The highest of many noisy scores is in part luck, and what was trained longer is not worse for that: at
    SmolLM2's size the last vector of a run was better on held-out prompts than the one that scored highest.
    """
    gaps = scores - top
    return bool(gaps.mean() >= -gaps.std(ddof=1) / math.sqrt(len(gaps)))
