"""The watch on a run through TRL: validation, metrics, and steps without signal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import transformers
from numpy.typing import NDArray

from ...documents import read_json
from ...errors import TrainError
from ...runtime.tuning.settings import Report
from ...system import atomic_write
from ...tasks import Task
from ...vector import MicroVector
from ..options import Result, TrainSettings
from .peft_tinylora import vector_of

_NAMES = {
    "reward": "reward",
    "length": "completions/mean_length",
    "loss": "loss",
    "grad": "grad_norm",
    "lr": "learning_rate",
    "kl": "kl",
    "mismatch": "sampling/sampling_logp_difference/mean",
    "step_s": "step_time",
}
"""This project's name of a metric -> TRL's."""


class Watch(transformers.TrainerCallback):
    """A callback that keeps the best vector and the metrics, and holds v still where a step has no signal.

    It runs alike in every process: what it decides by is the same everywhere.

    Args:
        model: from `peft_model`.
        settings: of the run.
        path: of the file that keeps what validation found, for a run that is resumed.
        write: takes metrics; None in all processes but the first.
        resume: read `path`.
    """

    def __init__(
        self, model: Any, settings: TrainSettings, path: Path, write: Report | None, *, resume: bool
    ) -> None:
        self._model, self._settings, self._path, self._write = model, settings, path, write
        self._best = vector_of(model)
        self._start, self._score = math.nan, -math.inf
        self._best_step = self._step = self._silent = self._updates = 0
        self._stopped = "done"
        found = [_read(path) if resume and write and path.exists() else None]
        state = accelerate.utils.broadcast_object_list(found)[0]
        if state is not None:
            self._start, self._score, self._best_step, self._updates, values = state
            self._best = MicroVector(values)

    def result(self, task: Task) -> Result:
        """Return what the run found.

        Raises:
            TrainError: no step had a signal.
        """
        if not self._updates:
            raise TrainError(
                f"task {task.name} gives no signal: in {self._step} steps all samples of every prompt got "
                "the same reward. Make the task easier or harder, raise the temperature, or draw more "
                "samples a prompt"
            )
        return Result(self._best, self._start, self._score, self._best_step, self._step, self._stopped)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make no update without a gradient: Adam's momentum would drift on without evidence."""
        rows = [p for p in self._model.parameters() if p.requires_grad]
        if any(p.grad is not None and p.grad.any() for p in rows):
            self._silent, self._updates = 0, self._updates + 1
            return
        self._silent += 1
        for row in rows:
            row.grad = None  # the optimizer passes over it

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after too many steps without signal; validate what the run ends with."""
        self._step = state.global_step
        if self._silent >= self._settings.silence:
            self._stopped, control.should_training_stop = "silence", True
        if control.should_training_stop or self._step >= state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Pass the metrics of a step on, under this project's names."""
        if self._write is None or "reward" not in logs:
            return
        found = {name: logs[key] for name, key in _NAMES.items() if logs.get(key) is not None}
        signal, norm = 1 - logs["frac_reward_zero_std"], vector_of(self._model).norm
        self._write({"step": state.global_step, **found, "signal": signal, "norm": norm})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any
    ) -> None:
        """Keep the best."""
        score, event = float(metrics["eval_reward"]), "validation"
        if math.isnan(self._start):
            self._start, event = score, "start"
        if score > self._score:
            self._best, self._score, self._best_step = vector_of(self._model), score, state.global_step
        if self._write is None:
            return
        self._write({"event": event, "step": state.global_step, "validation": score})
        found = {"start": self._start, "score": self._score, "step": self._best_step}
        more = {"updates": self._updates, "values": self._best.values.tolist()}
        with atomic_write(self._path) as file:
            file.write(json.dumps(found | more).encode())


def _read(path: Path) -> tuple[float, float, int, int, NDArray[np.float32]]:
    """Return the start, the score, the step, the updates and the values of a state."""
    try:
        state = read_json(path)
        return (
            float(state["start"]),
            float(state["score"]),
            int(state["step"]),
            int(state["updates"]),
            np.array(state["values"], np.float32).reshape(len(state["values"]), -1),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise TrainError(f"{path} is not a usable state of a run: {error!r}") from None
