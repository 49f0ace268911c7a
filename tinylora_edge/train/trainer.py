"""The training loop: collect, step; validate, keep the best, back off from collapse."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import TrainError
from ..runtime.tuning.settings import Report
from ..tasks import Sample, Task
from ..tasks.task import name_of
from ..vector import MicroVector
from .batches import Anchor, Batches, Sampled
from .checkpoint import TrainState, load, save
from .learner import Group, Learner
from .options import Result, TrainSettings

_BETAS = 0.9, 0.99
_CLIP_WINDOW = 10
_WATCHED = 5
_SMALLEST_PROBE, _LARGEST_PROBE, _GROWTH = 1e-3, 16.0, 8.0
_VISIBLE = 0.25  # nats, root mean square


class Trainer:
    """The loop that trains v, or what stands in its place.

    Args:
        task: whose prompts are trained on; the first `TrainSettings.validation` are held back.
        basis: that v belongs to.
        learner: of the gradients; its adapter says what learns, and where it starts.
        batches: gives the groups of each step.
        judge: scores greedy answers to the validation prompts.
        settings: of the run.
        checkpoint: file that the state is kept in; None keeps none.
        identity: what else a resumed run must share, besides task, basis and settings.
        anchor: pulls v to the base, beside the task.

    Raises:
        TrainError: the task has too few prompts.
    """

    def __init__(
        self,
        task: Task,
        basis: Basis,
        learner: Learner,
        batches: Batches,
        judge: Sampled,
        *,
        settings: TrainSettings | None = None,
        checkpoint: Path | None = None,
        identity: dict[str, Any] | None = None,
        anchor: Anchor | None = None,
        start: NDArray[np.float32] | None = None,
    ) -> None:
        self.task, self.basis, self.learner = task, basis, learner
        self._batches, self._judged, self._anchor = batches, judge, anchor
        self.settings = settings or TrainSettings()
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
            "settings": asdict(self.settings),
            **(identity or {}),
        }
        held = self.settings.validation
        if held < 2:
            raise TrainError(f"{held} prompts for validation: at least 2 are needed to tell luck from gain")
        if len(task.train) < held + self.settings.prompts:
            raise TrainError(
                f"task {task.name} has {len(task.train)} training prompts, but {held} for validation and "
                f"{self.settings.prompts} a step are needed: add prompts, or lower those settings"
            )
        self._validation, self._train = list(task.train[:held]), list(task.train[held:])
        self.state = TrainState.start(learner.adapter.start if start is None else start)
        self._stop = False

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            TrainError: there is none, it is damaged, or it belongs to another run.
        """
        if self._checkpoint is None:
            raise TrainError("this run keeps no checkpoint to resume from")
        self.state = load(self._checkpoint, self._identity)

    def stop(self) -> None:
        """End the run after the step at hand, its state saved; safe to call from a signal handler."""
        self._stop = True

    def run(self, report: Report = lambda metrics: None) -> Result:
        """Train until the last step, silence, or `stop`.

        Raises:
            TrainError: no step had any signal, or a reward failed.
        """
        state, settings = self.state, self.settings
        if state.step == 0:
            began = time.monotonic()
            state.top_scores = self.validate(state.v)
            state.start_score = state.best_score = float(state.top_scores.mean())
            took = time.monotonic() - began
            report({"event": "start", "validation": state.start_score, "validate_s": took})
        stopped = "done"
        while state.step < settings.steps and not self._stop:
            metrics = self._step()
            state.step += 1
            last = state.step == settings.steps
            if state.step % settings.validate_every == 0 or last or self._unusual(metrics):
                began = time.monotonic()
                metrics["validation"] = self._judge(report)
                metrics["validate_s"] = time.monotonic() - began
            report(metrics)
            if state.silent >= settings.silence:
                stopped = "silence"
                break
            if state.step % settings.checkpoint_every == 0:
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
        best = MicroVector(state.best_v)
        return Result(best, state.start_score, state.best_score, state.best_step, state.step, stopped)

    def validate(self, v: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the rewards of greedy answers to the validation prompts: float64 [prompts]."""
        self._judged.lowest = self.state.lowest
        _, rewards = self._judged.draw(
            v, self._validation, each=1, temperature=0.0, seed=(self.settings.seed, 0)
        )
        self.state.lowest = self._judged.lowest
        return np.array(rewards, np.float64)[:, 0]

    def _step(self) -> dict[str, Any]:
        state, settings = self.state, self.settings
        seed = (settings.seed, 1, state.step)
        self._judged.lowest = state.lowest  # it draws the batches, too, where they are sampled
        groups, found = self._batches.collect(state.v, self._pick(state.step), seed)
        state.lowest = self._judged.lowest
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

    def _unusual(self, metrics: dict[str, Any]) -> bool:
        """Whether a step looks like the start of a collapse, which then is not left to go on."""
        if "reward" not in metrics:
            return False
        now, recent = [metrics["reward"], metrics["length"]], self.state.recent
        self.state.recent = [*recent, now][-_WATCHED:]
        return len(recent) == _WATCHED and unusual(now, recent)

    def _learn(self, groups: list[Group]) -> dict[str, Any]:
        state, settings = self.state, self.settings
        self.learner.adapter.set(state.v)
        if self._batches.loss.kl:
            self._set_reference(groups)
        if not state.lr:
            state.lr = settings.lr or self._derive_lr(groups)
        result: dict[str, Any] = {}
        for _ in range(settings.epochs):
            gradient = self.learner.gradient(groups, self._batches.loss)
            by_v = gradient.grad
            if self._anchor is not None:
                pull = self._anchor.gradient(state.v, state.step)
                by_v = by_v + self._anchor.weight * pull.grad
                result["anchor"] = pull.loss
            grad = self._by_z(by_v.numpy().astype(np.float32))
            norm = float(np.linalg.norm(grad))
            if not np.isfinite(norm):
                result["skipped"] = "non-finite gradient"
                break
            limit = settings.clip_norm * float(np.median(state.norms)) if state.norms else norm
            state.norms = [*state.norms, norm][-_CLIP_WINDOW:]
            lr = state.lr * (1 - (1 - settings.anneal) * state.step / max(settings.steps - 1, 1))
            self._update(grad * min(1.0, limit / max(norm, 1e-30)), lr)
            self.learner.adapter.set(state.v)
            result |= {"grad": norm, "lr": lr, "mismatch": gradient.mismatch}
        return result

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
        """Return the gradient by z of one by v, float32 [G, u]."""
        whitening, shape = self.learner.adapter.whitening, gradient.shape
        return np.asarray(whitening.gradient(gradient.reshape(-1)), np.float32).reshape(shape)

    def _by_v(self, step: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a step of z as one of v, float32 [G, u]."""
        whitening, shape = self.learner.adapter.whitening, step.shape
        return np.asarray(whitening.values(step.reshape(-1)), np.float32).reshape(shape)

    def _derive_lr(self, groups: Sequence[Group]) -> float:
        """The step size whose first Adam step (all entries of z +-lr) moves log-probabilities by the target.

        The probe grows until what it moves stands above rounding: bfloat16 alone moves them by up to .1, and
        how far a unit of v goes is the basis's own affair.
        """
        v, here = self.state.v, self.learner.measure(groups)
        rng = np.random.default_rng((self.settings.seed, 2))
        signs = [self._by_v(each) for each in rng.choice([-1.0, 1.0], (2, *v.shape)).astype(np.float32)]
        count = sum(len(completion) for group in groups for completion in group.completions)

        def move(probe: float) -> float:
            squares = 0.0
            for each in signs:
                self.learner.adapter.set(v + probe * each)
                there = self.learner.measure(groups)
                squares += sum(float(((a - b) ** 2).sum()) for a, b in zip(here, there, strict=True))
            return math.sqrt(squares / len(signs) / count)

        # What is measured last decides, so that to begin one step later changes nothing and saves two passes.
        probe = _GROWTH * _SMALLEST_PROBE
        if not (moved := move(probe)) < _VISIBLE:
            probe = _SMALLEST_PROBE
            moved = move(probe)
        while moved < _VISIBLE and probe <= _LARGEST_PROBE:
            probe *= min(max(_VISIBLE / max(moved, 1e-9), 2.0), _GROWTH)
            moved = move(probe)
        self.learner.adapter.set(v)
        return self.settings.target_logprob_change * probe / max(moved, 1e-9)

    def _set_reference(self, groups: Sequence[Group]) -> None:
        self.learner.adapter.set(np.zeros_like(self.state.v))
        for group, reference in zip(groups, self.learner.measure(groups), strict=True):
            group.reference = reference
        self.learner.adapter.set(self.state.v)

    def _judge(self, report: Report) -> float:
        """Validate; keep what is as good as the highest so far, or go back from a collapse."""
        state, settings = self.state, self.settings
        scores = self.validate(state.v)
        score, top = float(scores.mean()), float(state.top_scores.mean())
        if as_good(scores, state.top_scores) and score > state.start_score:
            state.best_v, state.best_score, state.best_step = state.v.copy(), score, state.step
        if score > top:
            state.top_scores = scores
        elif score < top - settings.tolerance:
            state.v = state.best_v.copy()
            state.m, state.s, state.updates = np.zeros_like(state.m), np.zeros_like(state.s), 0
            state.lr /= 2
            state.back_offs += 1
            report(
                {
                    "event": "back-off",
                    "step": state.step,
                    "validation": score,
                    "best": top,
                    "lr": state.lr,
                }
            )
        return score

    def _pick(self, step: int) -> list[Sample]:
        """The prompts of a step: every epoch visits all of them in an order of its own."""
        size, count = self.settings.prompts, len(self._train)
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, count)
            order = np.random.default_rng((self.settings.seed, 3, epoch)).permutation(count)
            chosen.append(self._train[order[offset]])
        return chosen

    def _save(self) -> None:
        if self._checkpoint is not None:
            save(self._checkpoint, self.state, self._identity)


def _digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of prompts and answers in their order, with whatever else a reward is given."""
    rows = [[each.prompt, each.answer, each.raw, dict(each.data)] for each in samples]
    # Of objects of a program's own the type has to do: their texts may differ from process to process.
    text = json.dumps(rows, default=lambda value: type(value).__name__, skipkeys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unusual(now: Sequence[float], recent: Sequence[Sequence[float]]) -> bool:
    """Whether a step's samples differ so much from those before that validation should look at once.

    Args:
        now: mean reward and mean length of the step's completions.
        recent: of the steps before.

    Returns:
        True if the reward is below a third of their mean, or the length below half or above twice of it.
    """
    reward, length = np.mean(recent, axis=0)
    return bool(now[0] < reward / 3 or not length / 2 <= now[1] <= length * 2)


def as_good(scores: NDArray[np.float64], top: NDArray[np.float64]) -> bool:
    """Whether scores are no lower than the highest so far, but for one standard error of the difference.

    The highest of many noisy scores is in part luck, and what was trained longer is not worse for that: at
    SmolLM2's size the last vector of a run was better on held-out prompts than the one that scored highest.

    Args:
        scores: rewards by prompt, float64 [prompts], at least 2.
        top: of the highest, the same prompts.
    """
    gaps = scores - top
    return bool(gaps.mean() >= -gaps.std(ddof=1) / math.sqrt(len(gaps)))
