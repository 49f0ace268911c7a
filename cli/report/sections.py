"""Sections that the reports of the demo and of `train` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...report.changes import changes
from ...report.curve import curve
from ...report.markup import Content, Markup, folded, heading, paragraph, table, text
from ...report.scores import Score, scores
from ...report.values import values
from .records import HeldOut, Prompted, Trained, duration


def measured(held: HeldOut, prompted: Prompted | None) -> Iterator[str]:
    """Yield what the vector is worth: the headline, its verdict, the bars, and the prompt beside it."""
    yield paragraph(
        Markup(
            f"{held.base:.2f} &#8594; {held.vector:.2f} <small>{held.difference:+.3f} +- "
            f"{held.standard_error:.3f}, mean reward of {held.n} prompts never trained on</small>"
        ),
        "headline",
    )
    yield paragraph(held.verdict(), "verdict")
    rows = [Score("base", held.base, held.base_standard_error, "base")]
    if prompted is not None:
        prompt = prompted.prompt, prompted.prompt_standard_error
        rows.append(Score("a prompt instead", *prompt, "prompt"))
    rows.append(Score("with the vector", held.vector, held.vector_standard_error, "vector"))
    yield scores(rows)
    yield changes(held.gained, held.lost, held.n)
    yield paragraph(
        f"Task {held.task}, greedy answers. Vector over the base: {held.difference:+.3f} +- "
        f"{held.standard_error:.3f}, paired, McNemar p = {held.p:.2g}."
    )
    if prompted is not None:
        yield paragraph(
            f"Vector over the prompt: {prompted.difference:+.3f} +- {prompted.standard_error:.3f}, paired, "
            f"McNemar p = {prompted.p:.2g}. {prompted.summary()}"
        )
    yield paragraph(
        "Behind +-, and at the end of a bar, is the standard error. Base and vector answer the same prompts "
        "in the deployed runtime, so their difference is paired; McNemar's exact test asks how likely gains "
        "and losses this uneven would be if the vector made no difference.",
        "dim",
    )


def behind(preamble: dict[str, Any]) -> Iterator[str]:
    """Yield the prompt that base and vector stand behind, as `Preamble.record` has it."""
    yield paragraph(
        "Base and vector stand behind a prompt, which belongs to the vector: put it before every request."
    )
    turns: list[tuple[Content, Content]] = [("system", preamble["system"])] if preamble["system"] else []
    for example in preamble["examples"]:
        turns += [("question", asked(example["question"])), ("answer", example["answer"])]
    yield folded("The prompt", table(["what", "text"], turns, ("", "")))


def asked(question: str | list[dict[str, str]]) -> str:
    """Return the words of a question, which may be chat messages."""
    return question if isinstance(question, str) else "\n".join(turn["content"] for turn in question)


def trained(training: Trained, samples: int | None) -> Iterator[str]:
    """Yield how the training went: its curve, explained, and which step was kept.

    Args:
        training: the run.
        samples: completions a prompt; None where the method draws none.
    """
    settings = training.options["settings"]
    yield heading("Training")
    yield "<figure>"
    yield curve(training.curve, training.best_step, max(training.steps, 1))
    yield (
        '<figcaption><span class="sampled">Dashed: the mean reward of the answers that each step '
        "sampled</span>, at the task's temperature, from which it learns. "
        f'<span class="validation">Solid: greedy answers to {training.validation} prompts held back</span>, '
        "which decide what is kept: the step with the ring. Higher is better.</figcaption></figure>"
    )
    drawn = f" with {samples} samples each" if samples else ""
    yield paragraph(
        f"{training.steps} steps of {settings['prompts']} prompts{drawn} took {duration(training.seconds)}. "
        f"{training.summary()}"
    )


def numbers(given: Sequence[float], names: Sequence[str]) -> Iterator[str]:
    """Yield the values of the vector as bars."""
    yield heading(f"The {len(given)} values")
    yield values(given, names)
    if not names:
        yield paragraph("The axes of this basis have no names: learn --axis gives them some.", "dim")


def settings(rows: Sequence[tuple[str, str]]) -> str:
    """Return everything that the run was made with, folded away."""
    cells: list[tuple[Content, Content]] = list(rows)
    return folded("How to get the same: settings and versions", table(["what", "value"], cells, ("", "hex")))


def flat(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield nested options as rows, `settings.steps` say; what is None was decided by the run itself."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", rest) for inner, rest in flat(value))
        elif value is not None:
            yield name, str(value)


def frame(data: str) -> str:
    """Return the bytes of a frame, in hexadecimal."""
    return paragraph(Markup(f"<code>{text(data)}</code>"), "frame")
