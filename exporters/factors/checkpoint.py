"""An export that is not finished: its journal stays beside the output until the output is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..._system import cores
from ...errors import ExportError
from ..bundle_writer import explain, refuse_existing
from .factorize import Progress, Work, factorize
from .journal import Journal


def journal_path(output: Path) -> Path:
    """Return where the journal of an export lies until it is finished: hidden, beside the output."""
    return output.parent / f".{output.name}.factors"


@contextmanager
def factorized(
    output: Path,
    work: Work,
    modules: Sequence[str],
    workers: int | None,
    size: Callable[[str], int],
    progress: Progress,
    plan: dict[str, Any] | None = None,
) -> Iterator[Journal]:
    """Give a journal with the factors of all modules; once the output is there, it is removed.

    Modules that an earlier run had finished are not factorized again. Whatever is raised before, the journal
    stays for the next run, unless there is nothing in it.

    Args:
        output: what the export writes; it must not exist.
        work, modules, size, progress: see `factorize`.
        workers: modules at the same time; by default one a core.
        plan: for the journal of a part.

    Raises:
        ExportError: the output exists, another export to it is running, a weight cannot be adapted, or
            there is no room.
        BaseMismatchError: the weights are not those of the base.
    """
    refuse_existing(output)
    if workers is not None and workers < 1:
        raise ExportError(f"{workers} workers cannot do anything: choose 1 or more")
    try:
        journal = Journal(journal_path(output), plan)
    except BlockingIOError:
        raise ExportError(
            f"another export to {output} is running: wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise ExportError(explain(output, error)) from error
    try:
        factorize(work, modules, journal, workers or cores(), size, progress)
        yield journal
    except OSError as error:
        raise ExportError(explain(output, error)) from error
    finally:
        # The output appears complete, in one rename: after it the journal is of no use, whatever is raised.
        if output.exists() or not len(journal):
            journal.remove()
        journal.close()
