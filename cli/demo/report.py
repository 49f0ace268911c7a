"""The demo's report: what 37 bytes did, and how, on one page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...report.markup import Cell, Content, Markup, heading, paragraph, table, text
from ...report.page import page
from ..report import sections
from ..report.plots import write_plots
from ..report.records import duration
from .results import AnswerPair, DemoResult


def render(found: DemoResult) -> str:
    """Return the report: HTML that is well-formed XML too. Whatever it quotes is escaped."""
    return page(f"tinylora-edge: {found.frame.bytes} bytes", _body(found))


def draw(found: DemoResult, path: Path) -> None:
    """Draw the report's figures into a PNG, all or nothing.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    title = f"{found.frame.bytes} bytes for {found.model}"
    shown = found.held_out, found.prompted, found.training, found.frame.values, found.export.axes
    write_plots(path, title, *shown)


def _body(found: DemoResult) -> Iterator[str]:
    held, frame = found.held_out, found.frame
    yield f"<h1>{frame.bytes} bytes for {text(found.model)}</h1>"
    short = " It was a short run: the whole demo trains longer." if found.quick else ""
    yield paragraph(
        f"A frozen model was exported, measured, trained with GRPO on the task {held.task}, and measured "
        f"again with the vector, which came out of a frame of {frame.bytes} bytes. All of it took "
        f"{duration(found.seconds)} with {found.threads} threads.{short}"
    )
    yield from sections.measured(held, found.prompted)

    yield heading("Answers")
    for title, chosen in found.answers.groups():
        yield paragraph(f"To {title}:")
        rows = [
            (
                a.prompt,
                _answer(a.base, a.base_reward),
                Cell(_answer(a.personalized, a.personalized_reward), _tone(a)),
            )
            for a in chosen
        ]
        yield table(["prompt", "base", "with the vector"], rows, ("text", "text", "text"), name="answers")

    yield from sections.trained(found.training, found.training.options["samples"])
    yield from sections.numbers(frame.values, found.export.axes)

    yield heading("The frame")
    yield sections.frame(frame.hex)
    yield table(["bytes", "what they are"], frame.parts, ("hex", ""))

    timing = found.timing
    yield heading("Exchange, and the base again")
    yield paragraph(
        f"A load took {timing.load * 1e3:.0f} ms with the vector, and {timing.plain_load * 1e3:.0f} ms for a "
        f"plain llama_cpp.Llama; a swap {timing.swap * 1e3:.2f} ms (median of {timing.swaps})."
    )
    summary = found.proof.summary()
    yield paragraph(summary[0].upper() + summary[1:])

    export = found.export
    yield sections.settings(
        [
            ("model", found.model),
            ("basis", export.digest),
            ("modules", f"{export.modules}, worst residual {export.residual:.1e}"),
            ("seed", str(found.seed)),
            *sections.flat(found.training.options),
            *found.versions.items(),
        ]
    )
    yield paragraph("The curve as data, and the values, are in vector.bin.json beside this file.", "dim")


def _answer(answer: str, reward: float) -> Content:
    return Markup(f'{text(answer)}<span class="reward">reward {reward:g}</span>')


def _tone(pair: AnswerPair) -> str:
    """Return the class of an answer that gained, lost, or did neither."""
    change = pair.personalized_reward - pair.base_reward
    return "text gain" if change > 0 else "text loss" if change < 0 else "text"
