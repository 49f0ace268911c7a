"""Answers side by side: chosen by rule, asked for one at a time, and shown as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from .. import console
from .results import AnswerPair, ShownAnswers

if TYPE_CHECKING:
    from ...runtime.evaluation import Evaluation
    from ...runtime.llama.model import TinyLoraLlama
    from ...tasks import Sample, Task

SHOWN = 4
"""How many answers are shown of each kind; the logits of the first prompts are compared."""


def choose(task: Task, base: Evaluation, vector: Evaluation) -> ShownAnswers:
    """Return the answers to show: those to the first prompts, and of the others the first that differ.

    Args:
        task: whose held-out prompts were answered.
        base, vector: the answers, in the order of the prompts.
    """

    def answer(i: int) -> AnswerPair:
        return AnswerPair(
            prompt=task.held_out[i].text,
            base=base.answers[i].strip(),
            base_reward=float(base.scores[i]),
            personalized=vector.answers[i].strip(),
            personalized_reward=float(vector.scores[i]),
        )

    changed = [i for i in range(base.n) if base.answers[i] != vector.answers[i]]
    return ShownAnswers(
        first=[answer(i) for i in range(min(SHOWN, base.n))],
        differing=[answer(i) for i in changed if i >= SHOWN][:SHOWN],
        changed=len(changed),
    )


def compare(llm: TinyLoraLlama, task: Task, samples: Sequence[Sample], frame: bytes) -> list[AnswerPair]:
    """Answer prompts one at a time, as `run` does: the base all of them, then the vector.

    Args:
        llm: the model; it has the vector afterwards.
        task: its limit of tokens, and its reward.
        samples: whose prompts are answered.
        frame: of the vector.
    """
    llm.clear()
    base = [_answer(llm, task, sample) for sample in samples]
    llm.swap(frame)
    vector = [_answer(llm, task, sample) for sample in samples]
    return [
        AnswerPair(
            prompt=sample.text,
            base=before,
            base_reward=base_reward,
            personalized=after,
            personalized_reward=vector_reward,
        )
        for sample, (before, base_reward), (after, vector_reward) in zip(samples, base, vector, strict=True)
    ]


def _answer(llm: TinyLoraLlama, task: Task, sample: Sample) -> tuple[str, float]:
    from ...tasks import Completion

    reply = llm.create_chat_completion(
        [{"role": "user", "content": sample.text}], max_tokens=task.max_tokens, temperature=0.0
    )
    choice, tokens = reply["choices"][0], reply["usage"]["completion_tokens"]
    text = choice["message"]["content"]
    reward = task.score(Completion(text, choice["finish_reason"] == "stop", tokens), sample)
    return text.strip(), float(reward)


def show(title: str, chosen: Sequence[AnswerPair]) -> None:
    """Print answers as a table on stdout."""
    table = Table(title=f"   {title}", title_justify="left", title_style="", show_lines=True)
    for column, share in (("prompt", 6), ("base", 5), ("with the vector", 5)):
        table.add_column(column, ratio=share, overflow="fold")
    for answer in chosen:
        table.add_row(
            Text(answer.prompt),
            Text(f"{answer.base}\nreward {answer.base_reward:g}"),
            Text(f"{answer.personalized}\nreward {answer.personalized_reward:g}"),
        )
    console.print_table(table)
