"""The training loop: collect, step; validate, keep the best, go back from a collapse. And its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import TrainError
from ..eval.measure import evaluate
from ..jsonio import restored
from ..projection import Whitening
from ..runtime.batch import Stopped
from ..runtime.learning.state import Report, as_good, collapsed, load_state, picked, save_state
from ..tasks import Sample
from ..tasks.rewards import is_text
from ..vector import MicroVector
from ..wire.values import BITS
from .adapter import give_back
from .batches import KEEP, WHITENED, Answers, Rehearsal
from .learner import Group, Learner, ModuleWhitening, rounded, whitened, work_of
from .options import Options, Phase

_BETAS = 0.9, 0.99
_ANNEAL = 0.1  # step size of the last step, relative to the first
_CLIP = 2.0  # largest norm of a gradient, relative to the median of the last ones
_CLIP_WINDOW = 10  # gradients in that median
_TOLERANCE = 0.2  # how far validation may fall below the best before training goes back to it
_LOWER = 0.99  # a loss counts as better below this share of the lowest one
_EXPLOSION = 0.5  # a loss of so many nats a token above twice the lowest one is a collapse
_PATIENCE = 4  # validations in a row without a better one, after which SFT ends
_APART = 2  # seconds of steps between validations, for each second that the last validation took
_GRACE = 1.25  # a step that still runs at so many times the minutes is given up
_PROBE = 64  # most tokens of a prompt, and of an answer, in the pass that a run's time is estimated from
_SILENT = 2  # steps in a row without signal, after which the user is told
_SILENCE = 10  # steps in a row without signal, after which GRPO ends
ROUNDED = 2 / 3  # share of a run, after which gradients are taken at rounded values
DIFFER = 0.25  # share of the groups whose rewards must differ for GRPO to be worth its time
_HOTTER = 1.0, 1.3  # temperatures to try above a task's own
_LENGTHS = {"sft": 1.75, "grpo": 0.5}  # Frobenius norm in R of a method's first step

# The step size of SFT: see `fitted_lr`.
_MOVES = 0.5  # nats a token by which the first step is to change what the model predicts
_POWER = 1.6  # these nats rise with this power of the step size: about 2 for short steps, 1.3 for long ones
_TRIES = 4  # step sizes that are tried at most
_NEAR = math.log(2)  # once the nats are within this factor of `_MOVES`, the next step size is not tried
_FARTHEST = math.log(4)  # largest factor between a step size and the next one


def default_lr(basis: Basis, method: str) -> float:
    """Return the step size with which the first step has the same length in R for all bases.

    Adam's first step is +-lr in each of the n numbers. Its root mean square length in R is lr |P|, P being
    the map from coordinates to R. R is relative to the singular values (R = x I scales the leading part of a
    weight by 1 + x), so its unit is the same in every module. The lengths were the best of a grid
    (docs/EVIDENCE.md).
    """
    return _LENGTHS[method] / basis.projection.norm


def fitted_lr(
    learner: Learner,
    coordinates: Whitening | ModuleWhitening,
    groups: Sequence[Group],
    grad: NDArray[np.float32],
) -> float:
    """Return the step size of SFT that fits a model, a basis and a task: with it the first step changes the
    model's predictions on the step's own answers by about `_MOVES` (KL divergence).

    The best length in R differs twofold between models, and the best KL hardly (docs/EVIDENCE.md).

    Args:
        learner: its adapter has v at the start, and has it again afterwards.
        coordinates: of steps.
        groups: of the first step.
        grad: gradient of the first step by the coordinates, [n].
    """
    adapter, lr = learner.adapter, default_lr(learner.adapter.basis, "sft")
    with torch.no_grad():
        start, r = adapter.v.cpu().numpy().copy(), adapter.R()
    power, last = _POWER, (0.0, 0.0)
    for number in range(_TRIES):
        adapter.set(adapter.basis.bounded(start - coordinates.values(np.float32(lr) * np.sign(grad))))
        moved = learner.apart(groups, r)  # not finite where the step is far too long
        away = math.log(max(moved if math.isfinite(moved) else 1e9, 1e-9) / _MOVES)
        if number and away != last[1]:
            power = min(max((away - last[1]) / (math.log(lr) - last[0]), 1.0), 4.0)
        last = math.log(lr), away
        lr *= math.exp(min(max(-away / power, -_FARTHEST), _FARTHEST))
        if abs(away) < _NEAR:
            break
    adapter.set(start)
    return lr


class Trainer:
    """The loop that trains v, held by the learner's adapter, with the method in the options.

    `answers` gives the answers to learn from, and those to the validation prompts, which are not trained on
    (`Options.split`). Where `checkpoint` exists, the loop goes on from there; `identity` is what both runs
    must share. A checkpoint whose minutes were over goes on with more minutes, unless another method has
    begun from its end (`followed`). GRPO begins only if the rewards differ in some groups, and at least in
    the share `needed` of them. `known` are the validation rewards of the start, where it has been validated.

    Raises:
        TrainError: the task has too few prompts, or the checkpoint is damaged, or of another run.
        VectorError: the basis has another number of values than the start.
    """

    def __init__(
        self,
        learner: Learner,
        answers: Answers,
        *,
        options: Options,
        checkpoint: Path,
        identity: dict[str, Any],
        followed: bool = False,
        needed: float = 0.0,
        known: NDArray[np.float64] | None = None,
        rehearsal: Rehearsal | None = None,
    ) -> None:
        basis = learner.adapter.basis
        self.learner, self.options, self._answers, self._rehearsal = learner, options, answers, rehearsal
        self._checkpoint, self._identity, self._needed, self._known = checkpoint, identity, needed, known
        self._validation, self._train = options.split(answers.task)
        self._method = options.method or "grpo"
        self._sft = self._method == "sft"
        self._held = answers.given(self._validation) if self._sft else []
        self.basis = basis
        self._start = basis.values(options.start or np.zeros(basis.size))
        self.state = TrainState.start(self._start)
        start = MicroVector(self._start, options.frame_dtype or "fp32", entries=basis.entries)
        self.state.best_v = start.values
        if checkpoint.exists():
            self.state = read_checkpoint(checkpoint, identity)
            more = (options.minutes or 0) > (self.state.minutes or math.inf)
            if self.state.stopped == "done" and more and not followed:
                self.state.stopped = ""
        self.state.minutes, self.state.dtype = options.minutes, options.dtype
        self._whitening: Whitening | ModuleWhitening | None = None
        self._stop = False
        self._report: Report = lambda metrics: None
        self._validated = self.state.step  # the last step with a validation
        self._since, self._took = 0.0, 0.0  # seconds of the steps since then, and of that validation
        self._longest = 0.0  # seconds of the longest step
        self._once = 0.0  # seconds in the present step of work that is done once a run

    def stop(self) -> None:
        """End the run after the current step and save its state; safe to call from a signal handler."""
        self._stop = True

    def run(self, report: Report = lambda metrics: None) -> tuple[MicroVector, Phase]:
        """Train until the budget is used up, nothing gets better, or `stop` is called.

        Where all answers of each group had the same reward (`no signal`), or nothing was better than the
        start, the vector is the start. A step that still runs a quarter past the minutes is given up.

        TrainError: the minutes are too few to judge the start or, by an estimate, for a step.
        """
        state, minutes = self.state, self.options.minutes
        most = math.inf if minutes is None else 60 * _GRACE * minutes

        def write(metrics: dict[str, Any]) -> None:
            state.curve.append(metrics)
            report(metrics)

        self._report = report

        if minutes is not None and self._sft and not state.curve:
            self._foresee(60 * minutes)
        self.learner.adapter.until = self._answers.batch.until = time.monotonic() + most - state.seconds
        try:
            self._loop(write, report)
        except Stopped:
            if not state.curve:
                raise TrainError(
                    f"{minutes:g} minutes are over, and the {len(self._validation)} prompts that choose the "
                    "vector are not answered once: allow more minutes, or shorten the answers"
                ) from None
            state.stopped = "done"
            state.seconds = max(state.seconds, most)  # the step that was given up took them too
        finally:
            self.learner.adapter.until = self._answers.batch.until = math.inf
        save_checkpoint(self._checkpoint, self.state, self._identity)
        # Stopped in its last step, a run is interrupted too: measuring would take its time as well.
        return self._result("interrupted" if self._stop else state.stopped)

    def _loop(self, write: Report, report: Report) -> None:
        state, options = self.state, self.options
        if not state.curve:
            self._begin(write)
        if not (self._sft or state.stopped):
            self._find_temperature(report)
        while not (state.stopped or self._stop or self._used() >= 1):
            began = time.monotonic()
            metrics = self._step()
            state.step += 1
            took = time.monotonic() - began
            state.seconds += took
            self._since += took
            # The first step of GRPO draws nothing: its answers were drawn to find the temperature.
            whole = max(took, metrics.get("draw_s", 0.0) + metrics["learn_s"])
            self._longest = max(self._longest, whole - self._once)
            self._once = 0.0
            metrics["share"] = min(1.0, self._used())
            silent = state.silent >= _SILENCE
            if self._due() or silent or metrics["share"] == 1:
                metrics |= self._judge(write)
            write(metrics)
            if state.silent == _SILENT:
                report({"event": "silent", "reward": metrics["reward"]})
            if silent:
                state.stopped = "silence" if state.signal else "no signal"
            elif self._sft and "validation" in metrics and state.stale >= _PATIENCE:
                self._lose_patience()
            elif state.step % options.checkpoint_every == 0:
                save_checkpoint(self._checkpoint, self.state, self._identity)
        if not (state.stopped or self._stop):
            state.stopped = "done" if state.signal else "no signal"

    def validate(self, v: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
        """Return the rewards of greedy answers to the validation prompts, and the loss on the given ones.

        Returns:
            rewards, float64 [prompts]: of texts, minus the nats a token. The loss in nats a token, 0 where
            the method is not SFT.
        """
        task, loss = self._answers.task, 0.0
        if self._sft:
            self.learner.adapter.set(v)
            logprobs = self.learner.measure(self._held, self._measuring("loss of held-back answers"))
            sums = np.array([float(each.sum()) for each in logprobs], np.float64)
            counts = np.array([len(group.completions[0]) for group in self._held])
            loss = -float(sums.sum() / counts.sum())
            if is_text(task.reward):
                return sums / counts, loss
        answered = self._measuring("answers to held-back prompts")
        vector, samples = self._vector(v), self._validation
        found = evaluate(self._answers.batch, task, vector, samples=samples, answered=answered)
        return found.scores, loss

    def _measuring(self, what: str) -> Callable[..., None]:
        """Return a function that reports one more validation prompt as measured, or a number of them."""
        at = f"step {self.state.step}" if self.state.step else "the start"
        event = {"event": "measuring", "what": f"{at}, {what}", "total": len(self._validation)}
        done = 0

        def measured(count: int = 1) -> None:
            nonlocal done
            done += count
            self._report({**event, "done": done})

        return measured

    def _begin(self, write: Report) -> None:
        """Validate the start."""
        state, began = self.state, time.monotonic()
        scores, loss = self.validate(state.best_v) if self._known is None else (self._known, 0.0)
        state.best_scores = state.top_scores = scores
        state.start_score = float(scores.mean())
        state.start_loss = state.best_loss = state.lowest_loss = loss
        self._took = took = time.monotonic() - began
        state.seconds += took
        losses = {"validation_loss": loss} if self._sft else {}
        write({"event": "start", "validation": state.start_score, **losses, "validate_s": took})

    def _foresee(self, seconds: float) -> None:
        """Time a short pass. TrainError: by that, a step with validations before and after it takes more than
        the seconds."""
        began, one = time.monotonic(), np.ones(1, np.float32)
        chosen = self._held[: self.learner.workers]
        probe = [Group(each.prompt[-_PROBE:], [each.completions[0][:_PROBE]], one) for each in chosen]
        self.learner.adapter.set(self.state.v)
        self.learner.gradient(probe)
        a_token = (time.monotonic() - began) / work_of(probe)
        held, prompts, tokens = len(self._held), self.options.prompts, work_of(self._held)
        # The two validations: without a gradient a token takes about a third of the time.
        needed = a_token * tokens * (2 / 3 + prompts / held)
        about = float(f"{needed / 60:.2g}")  # two digits; below a million `,g` writes no exponent
        if needed > seconds:
            raise TrainError(
                f"{seconds / 60:g} minutes are too few for these answers: to measure {held} held-back ones, "
                f"to take one step on {prompts} and to measure again takes about {about:,g} minutes "
                f"here, {tokens:,} tokens being held back. Allow --minutes {math.ceil(needed / 30)}, or "
                "shorten the answers"
            )

    def _find_temperature(self, report: Report) -> None:
        """Draw at rising temperatures until enough groups differ in their rewards, and learn at that one."""
        state, began = self.state, time.monotonic()
        if not state.temperature:
            shares: dict[float, float] = {}
            own = self._answers.task.temperature
            for temperature in (own, *(each for each in _HOTTER if each > own)):
                if self._stop:
                    return
                report({"event": "temperature", "temperature": temperature, "differ": {**shares}})
                self._answers.temperature = temperature
                _, metrics = self._answers.drawn(*self._of_step(0, self._start))
                shares[temperature] = metrics["signal"]
                if shares[temperature] >= DIFFER:
                    break
            state.temperature = max(shares, key=lambda each: (shares[each], -each))
            state.seconds += time.monotonic() - began
            if not shares[state.temperature] or shares[state.temperature] < self._needed:
                state.stopped = "no signal"
        self._answers.temperature = self.learner.temperature = state.temperature

    def _due(self) -> bool:
        """Whether to validate now. Where minutes end a run, validations get about a third of them at most."""
        steps, every = self.state.step, self.options.validate_every
        if self.options.steps is not None:  # so that two runs of so many steps are the same
            return steps % every == 0
        return steps - self._validated >= every and self._since >= _APART * self._took

    def _used(self) -> float:
        """Return the share of the budget, steps or minutes, that is used.

        Minutes are used up where the next step with its validation would pass them.
        """
        options, steps, used = self.options, self.state.step, 0.0
        if options.steps is not None:
            used = steps / options.steps
        if options.minutes is not None and steps:  # one step is taken in any case
            spent, limit = self.state.seconds, 60 * options.minutes
            used = max(used, 1.0 if spent + self._longest + self._took > limit else spent / limit)
        return used

    def _result(self, stopped: str) -> tuple[MicroVector, Phase]:
        state = self.state
        validated = [row.get("step", 0) for row in state.curve if "validation" in row]
        phase = Phase(
            self._method,
            state.start_score,
            float(state.best_scores.mean()),
            start_loss=state.start_loss if self._sft else None,
            best_loss=state.best_loss if self._sft else None,
            best_step=state.best_step,
            steps=state.step,
            seconds=round(state.seconds, 1),
            stopped=stopped,
            temperature=state.temperature or None,
            gaining=stopped == "done" and 0 < state.best_step == validated[-1],
        )
        return self._vector(state.best_v), phase

    def _vector(self, v: NDArray[np.float32]) -> MicroVector:
        return MicroVector(v, basis=self.basis.digest, under=self.learner.adapter.under)

    def _step(self) -> dict[str, Any]:
        state = self.state
        state.rounded = state.rounded or self._used() >= ROUNDED
        at = self._rounded() if state.rounded else state.v
        vector, samples, seed = self._of_step(state.step, at)
        if self._sft:
            groups = self._answers.given(samples)
            tokens = sum(len(group.completions[0]) for group in groups)
            found: dict[str, Any] = {"tokens": tokens, "length": tokens / len(groups)}
        else:
            groups, found = self._answers.drawn(vector, samples, seed)
            groups = [group for group in groups if group.advantage.any()]
        metrics = {"step": state.step + 1, **found}
        began = time.monotonic()
        if groups:
            metrics |= self._learn(groups, at)
            state.silent, state.signal = 0, True
        else:
            # Not even Adam's momentum moves v: it would drift on without evidence.
            state.silent += 1
        metrics |= {"norm": float(np.linalg.norm(state.v)), "learn_s": time.monotonic() - began}
        return metrics

    def _learn(self, groups: list[Group], at: NDArray[np.float32]) -> dict[str, Any]:
        """Step by the gradient `at` v, or at what v is rounded to (a straight-through estimate)."""
        state, options = self.state, self.options
        self.learner.adapter.set(at)
        result: dict[str, Any] = {}
        gradient = self.learner.gradient(groups)
        if self._sft:
            result["loss"] = gradient.loss
        by_v = gradient.grad
        if self._rehearsal is not None:
            pull = self._rehearsal.gradient(state.step)
            by_v = by_v + KEEP * pull.grad
            result["moved"] = pull.loss
        give_back()
        grad = np.asarray(self._coordinates().gradient(by_v.numpy()), np.float32)
        norm = float(np.linalg.norm(grad))
        if not np.isfinite(norm):
            return result | {"skipped": "non-finite gradient"}
        if not state.lr:
            state.lr = options.lr or self._first_lr(groups, grad)
        limit = _CLIP * float(np.median(state.norms)) if state.norms else norm
        state.norms = [*state.norms, norm][-_CLIP_WINDOW:]
        last = None if options.steps is None else max(options.steps - 1, 1)
        fallen = self._used() if last is None else state.step / last
        lr = state.lr * (1 - (1 - _ANNEAL) * min(1.0, fallen))
        self._update(grad * min(1.0, limit / max(norm, 1e-30)), lr)
        return result | {"grad": norm, "lr": lr, "mismatch": gradient.mismatch}

    def _first_lr(self, groups: list[Group], grad: NDArray[np.float32]) -> float:
        """Return the step size where none is given."""
        if not self._sft:
            return default_lr(self.basis, self._method)
        began, coordinates = time.monotonic(), self._coordinates()
        found = fitted_lr(self.learner, coordinates, groups, grad)
        self._once += time.monotonic() - began
        return found

    def _update(self, grad: NDArray[np.float32], lr: float) -> None:
        """Take one step of Adam (Kingma & Ba, 2015) in the coordinates of `whitened`.

        The gradient and Adam's moments are by these coordinates; the step is added to v.
        """
        state = self.state
        state.updates += 1
        first, second = _BETAS
        state.m = first * state.m + (1 - first) * grad
        state.s = second * state.s + (1 - second) * grad**2
        m = state.m / (1 - first**state.updates)
        s = state.s / (1 - second**state.updates)
        step = self._coordinates().values(lr * m / (np.sqrt(s) + 1e-8))
        fixed = getattr(self.learner.adapter.under, "r", None)
        state.v = self.basis.bounded(state.v - step, fixed).astype(np.float32)

    def _rounded(self) -> NDArray[np.float32]:
        """Return v as its frame will hold it in `q2` or `q4`; else v itself."""
        v, dtype = self.state.v, self.options.frame_dtype
        return rounded(self._coordinates(), v, dtype, self.basis) if dtype in BITS else v

    def _coordinates(self) -> Whitening | ModuleWhitening:
        """Return the coordinates of steps. They depend on the start and the first prompts alone, so that a
        resumed run has the same."""
        if self._whitening is None:
            began = time.monotonic()
            self.learner.adapter.set(self._start)
            self._whitening = whitened(self.learner, self._likely)
            self.learner.adapter.set(self.state.v)
            self._once = time.monotonic() - began
        return self._whitening

    def _likely(self) -> list[Group]:
        """Return the answers whose likelihood gives the coordinates of steps."""
        if self._sft:
            return self._answers.given(self._pick(0, min(WHITENED, len(self._train))))
        groups, _ = self._answers.drawn(*self._of_step(0, self._start))
        return groups[: max(1, WHITENED // self._answers.each)]

    def _judge(self, write: Report) -> dict[str, float]:
        """Validate v. Keep it where it is as good as the highest so far; go back to the best from a collapse.

        Of two vectors whose rewards differ by no more than chance, SFT keeps the one with the lower loss:
        where the reward is still 0 everywhere, a lower loss is progress.
        """
        state, began = self.state, time.monotonic()
        v = self._rounded()
        scores, loss = self.validate(v)
        score, top = float(scores.mean()), float(state.top_scores.mean())
        if self._sft:
            better = score > state.best_scores.mean() or loss < state.best_loss
        else:
            better = score > state.start_score
        # Long first steps may raise the loss before it falls: in half the budget that costs no patience.
        early = state.lowest_loss >= state.start_loss and self._used() < 0.5
        progress = score > top or loss < _LOWER * state.lowest_loss
        state.stale = 0 if progress or early else state.stale + 1
        if as_good(scores, state.top_scores) and better:
            state.best_v, state.best_step = v.copy(), state.step
            state.best_scores, state.best_loss = scores, loss
        elif collapsed(scores, state.top_scores, _TOLERANCE) or loss > 2 * state.lowest_loss + _EXPLOSION:
            self._go_back()
            state.lr /= 2
            went = {"validation": score, "best": top, "lr": state.lr}
            write({"event": "back-off", "step": state.step, **went})
        if score > top:
            state.top_scores = scores
        state.lowest_loss = min(state.lowest_loss, loss)
        took = time.monotonic() - began
        state.seconds += took
        self._validated, self._since, self._took = state.step, 0.0, took
        losses = {"validation_loss": loss} if self._sft else {}
        return {"validation": score, **losses, "validate_s": took}

    def _go_back(self) -> None:
        """Go on from the best vector, with Adam as in its first step."""
        state = self.state
        state.v, state.updates = state.best_v.copy(), 0
        state.m, state.s = np.zeros_like(state.m), np.zeros_like(state.s)

    def _lose_patience(self) -> None:
        """End the run; or, with `q2` or `q4`, go on from the best vector with gradients at rounded values."""
        if self.state.rounded or self.options.frame_dtype not in BITS:
            self.state.stopped = "patience"
            return
        self._go_back()
        self.state.rounded, self.state.stale = True, 0

    def _of_step(
        self, step: int, v: NDArray[np.float32]
    ) -> tuple[MicroVector, list[Sample], tuple[int, ...]]:
        """Return the vector, the prompts and the seed that a step draws with."""
        return self._vector(v), self._pick(step, self.options.prompts), (self.options.seed, 1, step)

    def _pick(self, step: int, size: int) -> list[Sample]:
        """Return `size` prompts of a step."""
        return [self._train[i] for i in picked(len(self._train), step, size, (self.options.seed, 3))]


# Checkpoints: the whole state of a run in one JSON file, replaced atomically

_SCORES = ("best_scores", "top_scores")
_ARRAYS = ("v", "m", "s", "best_v", *_SCORES)


@dataclass
class TrainState:
    """The state of a run: all that the next step depends on. Random numbers derive from (seed, step)."""

    v: NDArray[np.float32]  # [n], like the next three
    m: NDArray[np.float32]  # Adam's first moment, and its second
    s: NDArray[np.float32]
    best_v: NDArray[np.float32]  # what the run would return now, as its frame holds it
    best_scores: NDArray[np.float64]  # rewards of its validation, [prompts]; empty before the first
    top_scores: NDArray[np.float64]  # rewards of the highest validation
    updates: int = 0  # Adam's own count of steps
    step: int = 0
    lr: float = 0.0
    minutes: float | None = None  # that the method has
    dtype: str | None = None  # of the weights
    seconds: float = 0.0  # spent on steps, validations, and finding a temperature
    best_step: int = 0
    start_score: float = float("-inf")
    start_loss: float = 0.0  # nats a token of the validation answers, where SFT measures them
    best_loss: float = 0.0
    lowest_loss: float = 0.0
    temperature: float = 0.0  # at which answers are drawn (GRPO); 0 before it is found
    signal: bool = False  # whether any step had a group to learn from
    silent: int = 0  # steps without signal in a row
    stale: int = 0  # validations in a row that found nothing better
    rounded: bool = False  # whether gradients are taken at v as its frame holds it
    stopped: str = ""  # why the run ended; empty while it goes on
    norms: list[float] = field(default_factory=list)  # of the last gradients, for the clip
    curve: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, v: NDArray[np.float32]) -> TrainState:
        """Return the state before the first step."""
        return cls(v.copy(), np.zeros_like(v), np.zeros_like(v), v.copy(), np.empty(0), np.empty(0))


def save_checkpoint(path: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write a checkpoint; `identity` is what a resumed run must share with this one."""
    save_state(path, vars(state) | {name: getattr(state, name).tolist() for name in _ARRAYS}, identity)


def read_checkpoint(path: Path, identity: dict[str, Any]) -> TrainState:
    """Read a checkpoint. Errors: those of `load_state`."""

    def read(content: Any) -> TrainState:
        values = dict(content)
        arrays = {
            name: np.array(values.pop(name), np.float64 if name in _SCORES else np.float32)
            for name in _ARRAYS
        }
        for name, array in arrays.items():
            if array.ndim != 1 or (name not in _SCORES and array.shape != arrays["v"].shape):
                raise ValueError(f"its {name} is of shape {array.shape}")
        return restored(TrainState, values, arrays)

    return load_state(path, read, identity)
