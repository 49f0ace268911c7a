"""Models from the hub, as a command shows them: what was chosen, and how far its download is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from . import console

if TYPE_CHECKING:
    from ..exporters import ResolvedModel, Selection

CATALOG_HELP = "A catalog on top of the shipped one and your own; also TINYLORA_EDGE_CATALOG."


def fetch(found: Selection) -> ResolvedModel:
    """Say what was chosen, and download what is missing."""
    if found.shadowed is not None:
        name = found.shadowed.name
        console.warn(
            f"{name} is taken as the local path {Path(name).absolute()}; for the catalog's model of that "
            f"name pass {found.shadowed.gguf}"
        )
    for part in found.parts:
        if part.repository.reason:
            console.warn(f"{part.repository.reason}: going on with {part.repository}")
    missing = found.missing
    if console.stderr().is_terminal:
        for part in found.parts:
            what = part.quant or "the original weights"
            console.note(f"{what} from {part.repository}: {gigabytes(part.bytes)}")
        if missing < found.bytes:
            console.note(f"in the cache: {gigabytes(found.bytes - missing)}")
    with _progress(found.bytes if missing else 0) as step:
        return found.fetch(step)


def sources(provenance: Any) -> list[tuple[str, str]]:
    """Return rows of a report: where the files came from, as a manifest says it."""
    found = []
    for role in ("base", "weights"):
        section = provenance.get(role) if isinstance(provenance, dict) else None
        if isinstance(section, dict):  # a manifest may have been edited
            found.append((f"{role} from", f"{section.get('repository')}@{str(section.get('revision'))[:12]}"))
    return found


def gigabytes(size: int) -> str:
    """Return a size for reading: `4.7 GB`, `491 MB`."""
    if size >= 1_000_000_000:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 10_000_000 else console.megabytes(size)


@contextmanager
def _progress(size: int) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far a download is. In a pipe, and where there is nothing to download, nothing."""
    if not size:
        yield lambda name, done, total: None
        return
    columns = (
        console.words("{task.description}"),
        console.bar(beside=80),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with console.bars(*columns) as bar:
        task = bar.add_task("downloading", total=size)

        def step(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=name.rpartition("/")[2][-40:])

        yield step
