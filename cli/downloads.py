"""Models from the hub, as a command shows them: what was chosen, and how far its download is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    with console.progress("downloading", found.bytes if missing else None) as show:
        return found.fetch(
            lambda name, done, total: show(
                f"{name.rpartition('/')[2][-40:]}, {gigabytes(done)} of {gigabytes(total)}",
                done=done,
                total=total,
            )
        )


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
