"""Worked examples and validation prompts, drawn from the training split of a task by seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...errors import TrainError
from ..task import Draw, Sample, Task


def draw_examples(
    task: Task,
    count: int,
    *,
    seed: int = 0,
    draw: int = 0,
    written: Sequence[Sample] = (),
    without: Collection[str] = (),
) -> tuple[Sample, ...]:
    """Return worked examples, the same ones for the same arguments on every machine.

    They are training samples that have an answer. Where the task has none, they are written ones. Held-out
    prompts are never among them.

    Args:
        task: that they show.
        count: how many.
        seed, draw: which ones.
        written: samples with answers, for a task without.
        without: prompts, as `Sample.text` has them, that must not be shown: those that are to be measured on.

    Raises:
        TrainError: the task has no answers and none are written, or fewer of them than asked for.
    """
    unseen = {sample.text for sample in task.held_out}.union(without)
    answered = [sample for sample in task.train if sample.answer is not None and not sample.raw]
    pool = {sample.text: sample for sample in answered or written if sample.text not in unseen}
    if not answered and not written:
        raise TrainError(
            f"task {task.name} has no answers for worked examples: its {len(task.train)} training prompts "
            'come without. Write some, {"question": "...", "answer": "..."} a line, and pass '
            "candidates=load_candidates(task, path)"
        )
    if count > len(pool):
        raise TrainError(
            f"{count} worked examples of task {task.name} were asked for, and {len(pool)} training prompts "
            "have an answer: ask for fewer"
        )
    return tuple(Draw(f"{task.name}/examples/{seed}/{count}/{draw}").some(list(pool.values()), count))


def validation_prompts(task: Task, count: int, *, seed: int = 0) -> list[Sample]:
    """Return training prompts to choose a prompt by: `count`, or half of all where that is less.

    Raises:
        TrainError: the task has a single training prompt.
    """
    most = len(task.train) // 2
    if not most:
        raise TrainError(
            f"task {task.name} has {len(task.train)} training prompt, and a search needs some to choose by "
            "and others to show: add prompts"
        )
    return Draw(f"{task.name}/validation/{seed}").some(task.train, min(count, most))
