"""The report of `train`: one page beside the vector, made of its manifest and of what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...documents import read_json
from ...report.markup import heading, paragraph, text
from ...report.page import page
from ...system import atomic_write
from . import sections
from .plots import write_plots
from .records import HeldOut, Prompted, Trained

if TYPE_CHECKING:
    from ...runtime import Duel, PromptSearch


class TrainingReport:
    """The report of a run: what its manifest says, and the prompt beside it.

    Args:
        frame: file of the vector; its manifest lies beside it.
        axes: names of the values; none where they have no names.
        search: for a prompt, and the vector over it on the held-out prompts; None where none was measured.
    """

    def __init__(self, frame: Path, axes: Sequence[str], search: tuple[PromptSearch, Duel] | None) -> None:
        manifest: dict[str, Any] = read_json(frame.with_name(f"{frame.name}.json"))
        self.frame, self.axes, self._manifest = frame, axes, manifest
        self.values: list[float] = manifest["values"]
        self.trained = Trained(
            seconds=manifest["seconds"],
            options=manifest["options"],
            curve=manifest["curve"],
            **manifest["result"],
        )
        found = manifest.get("held_out")
        self.held_out = None if found is None else HeldOut(task=manifest["task"], **found)
        self.prompted = None if search is None else Prompted.of(search[0], search[1].comparison)

    @property
    def path(self) -> Path:
        """Where the report lies: beside the frame."""
        return self.frame.with_name(f"{self.frame.name}.html")

    def write(self) -> None:
        """Write the page, all or nothing."""
        with atomic_write(self.path) as file:
            file.write(self.render().encode())

    def draw(self) -> Path:
        """Draw the figures into a PNG beside the frame, and return where it lies.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        path = self.frame.with_name(f"{self.frame.name}.png")
        title = f"{self.frame.stat().st_size} bytes for {self._manifest['task']}"
        write_plots(path, title, self.held_out, self.prompted, self.trained, self.values, self.axes)
        return path

    def render(self) -> str:
        """Return the page: HTML that is well-formed XML too. Whatever it quotes is escaped."""
        return page(f"tinylora-edge: {self.frame.name}", self._body())

    def _body(self) -> Iterator[str]:
        manifest, data = self._manifest, self.frame.read_bytes()
        yield f"<h1>{len(data)} bytes for {text(manifest['task'])}</h1>"
        yield paragraph(
            f"{len(self.values)} numbers in {self.frame.name}, for the basis {manifest['basis'][:8]}."
        )
        if self.held_out is None:
            yield paragraph("The vector was not measured on held-out prompts: eval does that.")
        else:
            yield from sections.measured(self.held_out, self.prompted)
        if "preamble" in manifest:
            yield from sections.behind(manifest["preamble"])
        if "drift" in manifest:
            drift = manifest["drift"]
            yield paragraph(
                f"On {drift['prompts']} general prompts, which the task does not cover, the model is "
                f"{drift['kl']:.3f} +- {drift['standard_error']:.3f} nats a token away from its base."
            )
        options = manifest["options"]
        yield from sections.trained(self.trained, options["samples"] if options["method"] == "grpo" else None)
        yield from sections.numbers(self.values, self.axes)
        yield heading("The frame")
        yield sections.frame(data.hex())
        yield sections.settings(
            [("basis", manifest["basis"]), ("tool", manifest["tool"]), *sections.flat(options)]
        )
        yield paragraph(
            f"The curve as data, and the values, are in {self.frame.name}.json beside this file.", "dim"
        )
