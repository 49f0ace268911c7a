"""Models from the hub, as a command shows them: what was chosen, and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import console

if TYPE_CHECKING:
    from ..exporters import ResolvedModel, Selection


def fetch(found: Selection) -> ResolvedModel:
    """Say what was chosen, and download what is missing; the hub's client shows how far it is."""
    for part in found.parts:
        if part.repository.offline:
            console.warn(f"{part.repository.offline}: going on with {part.repository}")
        if console.stderr().is_terminal:
            what, here = part.quant or "the original weights", "" if part.missing else ", in the cache"
            console.note(f"{what} from {part.repository}: {gigabytes(part.bytes)}{here}")
    return found.fetch()


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
