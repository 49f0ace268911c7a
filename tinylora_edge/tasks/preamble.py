"""A preamble: the system prompt and the worked examples that an app puts before every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import TrainError
from .sample import Sample
from .task import Task, drawn

_Message = dict[str, str]


@dataclass(frozen=True)
class Preamble:
    """The start of every request: nothing, a system prompt, samples with answers as examples, or both."""

    system: str | None = None
    examples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        if self.system is not None and not self.system.strip():
            raise TrainError("the system prompt is blank: write one, or leave it out")
        for example in self.examples:
            if (example.raw and not example.unprompted) or not (example.answer or "").strip():
                raise TrainError(f"the worked example {example.text[:60]!r} is raw, or has no answer to show")

    def __bool__(self) -> bool:
        return self.system is not None or bool(self.examples)

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it: `system`, and `examples` with `question` and `answer`."""
        examples = [{"question": each.prompt, "answer": each.answer} for each in self.examples]
        return {"system": self.system, "examples": examples}

    def before_task(self, task: Task) -> Task:
        """Return a task all of whose prompts begin with the preamble; its reward is the same.

        A vector that is trained on it belongs behind this preamble, and its gain is that over the preamble
        alone. Training prompts that are shown as examples are left out.

        Raises:
            TrainError: a held-out prompt is shown, the task has a preamble already, or a prompt is raw.
        """
        if not self:
            return task
        if task.preamble is not None:
            raise TrainError(f"task {task.name} has a preamble already: give all of it at once")
        examples = {example.text for example in self.examples}
        for sample in (*task.held_out, *task.shifted):
            if sample.text in examples:
                raise TrainError(
                    f"the worked example {sample.text[:60]!r} is a held-out prompt of task {task.name}: what "
                    "is measured on must not be shown. Take another example"
                )
        return replace(
            task,
            train=[self.before(sample) for sample in task.train if sample.text not in examples],
            held_out=[self.before(sample) for sample in task.held_out],
            shifted=[self.before(sample) for sample in task.shifted],
            preamble=self.record(),
        )

    def before(self, sample: Sample) -> Sample:
        """Return a sample whose prompt has the preamble before it; everything else of it stays.

        A system prompt of its own stands behind the preamble's, in one message; those of examples are left
        out. A text without a prompt has other texts before it. A raw sample has no place for anything
        else: a TrainError says so.
        """
        if not self:
            return sample
        if sample.raw:
            if not sample.unprompted or self.system is not None:
                raise TrainError(
                    f"{sample.text[:60]!r} is raw: it goes past the chat template, so no system prompt can "
                    "stand before it, and examples before a text without a prompt alone"
                )
            texts = tuple(str(example.answer) for example in self.examples)
            return replace(sample, earlier=texts, without_preamble=sample.without_preamble or sample)
        own, turns = _split(sample)
        system = "\n\n".join(text for text in (self.system, own) if text is not None)
        messages = [{"role": "system", "content": system}] if system else []
        for example in self.examples:
            messages += [*_split(example)[1], {"role": "assistant", "content": str(example.answer)}]
        return replace(sample, prompt=(*messages, *turns), without_preamble=sample.without_preamble or sample)


def draw_examples(task: Task, count: int, *, seed: int = 0) -> tuple[Sample, ...]:
    """Return worked examples for a preamble: training samples with an answer, none of them held out.

    They are the same ones for the same arguments on every machine.
    """
    unseen = {sample.text for sample in (*task.held_out, *task.shifted)}
    shown = (each for each in task.train if each.unprompted or (each.answer is not None and not each.raw))
    pool = {sample.text: sample for sample in shown if sample.text not in unseen}
    if count > len(pool):
        raise TrainError(
            f"{count} worked examples of task {task.name} were asked for, and {len(pool)} training prompts "
            "have an answer: ask for fewer, or give the prompts answers"
        )
    return tuple(drawn(f"{task.name}/examples/{seed}/{count}/0", list(pool.values()), count))


def _split(sample: Sample) -> tuple[str | None, Sequence[_Message]]:
    if isinstance(sample.prompt, str):
        return None, [{"role": "user", "content": sample.prompt}]
    first, *rest = sample.prompt
    if first["role"] == "system" and rest:
        return first["content"], rest
    return None, sample.prompt
