"""Contestants on the command line: prompts, worked examples and LoRAs that a vector is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import SpinnerColumn

from .. import MicroVector
from ..documents import read_json
from . import console

if TYPE_CHECKING:
    from ..runtime import Contestant, PromptSearch, TinyLoraLlama, TinyLoraOnnx
    from ..tasks import Sample, Task


class Against(StrEnum):
    """Prompts that are found by a search."""

    none = "none"
    prompt = "prompt"
    best = "best-prompt"


AgainstOption = Annotated[
    Against,
    typer.Option(
        "--against", help="Against the prompt that a search finds: prompt is quick, best-prompt thorough."
    ),
]
SystemsOption = Annotated[
    list[str] | None,
    typer.Option("--system", metavar="TEXT", help="Against a system prompt. May be repeated."),
]
ExamplesOption = Annotated[
    list[int] | None,
    typer.Option(
        "--examples",
        metavar="K",
        min=1,
        help="Against K worked examples from the training split. May be repeated.",
    ),
]
LorasOption = Annotated[
    list[Path] | None,
    typer.Option("--lora", metavar="FILE", help="Against a LoRA: GGUF. May be repeated."),
]
PreamblesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--preamble",
        metavar="FILE",
        help="Against the prompt of a file, as --save-preamble writes it. May be repeated.",
    ),
]
SavePreambleOption = Annotated[
    Path | None,
    typer.Option(
        "--save-preamble",
        metavar="FILE",
        help="Write the prompt that --against found there: train and tune take it as --preamble.",
    ),
]
CandidatesOption = Annotated[
    Path | None,
    typer.Option(
        "--candidates",
        metavar="FILE.jsonl",
        help='What a search chooses from: {"system": ...} a line; {"question": ..., "answer": ...} is an '
        "example, for a task without answers. [default: those that are shipped]",
    ),
]


@dataclass(frozen=True)
class Wishes:
    """The contestants that a vector is to be measured against.

    Attributes:
        systems, examples, preambles, loras: contestants, in this order.
        against: the search for another one.
        candidates: a file for it; None for what is shipped.
    """

    systems: Sequence[str] = ()
    examples: Sequence[int] = ()
    preambles: Sequence[Path] = ()
    loras: Sequence[Path] = ()
    against: Against = Against.none
    candidates: Path | None = None

    def __bool__(self) -> bool:
        given = self.systems or self.examples or self.preambles or self.loras
        return bool(given) or self.against is not Against.none

    @contextmanager
    def contestants(
        self, llm: TinyLoraLlama | TinyLoraOnnx, task: Task, samples: Sequence[Sample], seed: int
    ) -> Iterator[list[Contestant]]:
        """Give the contestants that need no search, each checked.

        Raises:
            TrainError: the task has no answers for examples, or a prompt does not fit.
            BaseMismatchError: a LoRA is of another model.
            TinyLoraError: the engine runs no LoRAs.
        """
        from ..runtime import Contestant
        from ..runtime.contests.contest import fitting
        from ..runtime.contests.cost import size_of
        from ..tasks import Preamble
        from ..tasks.candidates import any_candidates, draw_examples

        found = [
            Contestant(name=_numbered("system prompt", i, self.systems), preamble=Preamble(text), wire=0)
            for i, text in enumerate(self.systems, 1)
        ]
        written = () if not self.examples else any_candidates(task, self.candidates).examples
        for count in dict.fromkeys(self.examples):
            shown = Preamble(None, draw_examples(task, count, seed=seed, written=written))
            name = f"{count} example{'s' if count > 1 else ''}"
            found.append(Contestant(name=name, preamble=shown, wire=0))
        for i, path in enumerate(self.preambles, 1):
            name = _numbered("preamble", i, self.preambles)
            found.append(Contestant(name=name, preamble=Preamble.read(path), wire=0))
        for each in found:
            fitting(llm, [each.preamble.before(s) for s in samples], task.max_tokens, each.preamble)
        for i, path in enumerate(self.loras, 1):
            file = _existing(path)
            with llm._beside(n_ctx=64, lora=file):  # refused now rather than after a search
                pass
            name = _numbered("LoRA", i, self.loras)
            found.append(Contestant(name=name, lora=file, wire=size_of(path)))
        yield found

    def search(
        self, llm: TinyLoraLlama | TinyLoraOnnx, task: Task, seed: int, **options: Any
    ) -> tuple[PromptSearch, Contestant] | None:
        """Search for a prompt where that was asked for.

        Raises:
            TrainError: there are no candidates for the task, or a file of them is malformed.
        """
        if self.against is Against.none:
            return None
        from ..runtime import Contestant, search_prompts
        from ..runtime.contests.search import search_quickly
        from ..tasks.candidates import load_candidates

        given = load_candidates(task, self.candidates)
        search = search_quickly if self.against is Against.prompt else search_prompts
        with progress() as report:
            found = search(llm, task, given, held_out=(), seed=seed, report=report, **options)
        name = "prompt" if self.against is Against.prompt else "best prompt"
        best = Contestant(name=name, preamble=found.best.preamble, wire=0, making_s=found.seconds)
        return found, best


def vector_contestant(vector: MicroVector, data: bytes, file: Path) -> Contestant:
    """Return a vector that was read from a file, with what its manifest says that it took."""
    from ..runtime import Contestant

    return Contestant(name="vector", vector=vector, wire=len(data), making_s=_making(file))


def with_vector(vector: Contestant | None, others: Sequence[Contestant]) -> list[Contestant]:
    """Return a vector, and every other contestant alone and together with it."""
    if vector is None:
        return list(others)
    return [vector, *(each for other in others for each in (other, vector.beside(other)))]


@contextmanager
def progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show on a terminal how far a search or a contest is; in a pipe, nothing."""
    columns = (
        SpinnerColumn(),
        console.words("{task.description}"),
        console.bar(beside=50),
        console.words("{task.fields[at]}"),
    )
    with console.bars(*columns) as bar:
        task = bar.add_task("", total=1, at="")

        def show(figures: dict[str, Any]) -> None:
            at = f"{figures['done']}/{figures['all']}"
            bar.update(
                task, completed=figures["done"], total=figures["all"], description=figures["what"], at=at
            )

        yield show


def _numbered(name: str, number: int, among: Sequence[Any]) -> str:
    return name if len(among) == 1 else f"{name} {number}"


def _existing(path: Path) -> Path:
    """Return a LoRA's file. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such LoRA", str(path))
    return path


def _making(file: Path) -> float | None:
    """Return the seconds that a vector's manifest says; None where there is none, or it does not say."""
    try:
        manifest = read_json(file.with_name(f"{file.name}.json"))
        seconds = manifest.get("result", {}).get("seconds", manifest.get("seconds"))
    except (OSError, ValueError, AttributeError):
        return None
    return float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else None
