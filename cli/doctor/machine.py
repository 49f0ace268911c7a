"""The machine: cores that may be used, what else runs on them, and room for models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ...system import cores
from .. import console
from .finding import FAULT, NOTE, OK, Finding

CHECK = "machine"

_LEAST, _COMFORTABLE = 200_000_000, 2_000_000_000
"""Bytes: the demo's bundle takes 101 MB where the model cannot be linked, and a model of a hub gigabytes."""


def check(bundle: Path | None = None) -> Iterator[Finding]:
    """Yield what is found of cores, load and disks.

    Args:
        bundle: whose folder is looked at besides the present one.
    """
    yield from _processors()
    looked_at: tuple[tuple[str, Callable[[], Path], str], ...] = (
        ("bundles", lambda: Path.cwd() if bundle is None else bundle.absolute().parent, "cd FOLDER"),
        ("models of the hub", _hub_cache, "export HF_HOME=FOLDER"),
        ("temporary files", lambda: Path(tempfile.gettempdir()), "export TMPDIR=FOLDER"),
    )
    for name, find, mend in looked_at:
        try:
            yield _disk(name, find(), mend)
        except OSError as error:
            text = f"where {name} go cannot be looked at: {console.describe(error)}"
            yield Finding(CHECK, FAULT, text, mend)


def _hub_cache() -> Path:
    """Return where huggingface_hub keeps its files, by its own rule: it may not be installed.

    Raises:
        FileNotFoundError: it would be in the home folder, and there is none.
    """
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(base, "huggingface"))
    old = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    cache = os.path.expandvars(os.path.expanduser(os.environ.get("HF_HUB_CACHE", old)))
    if cache.startswith("~"):
        raise FileNotFoundError(f"{cache} is in the home folder, and this user has none")
    return Path(cache).absolute()


def _processors() -> Iterator[Finding]:
    usable, all_cores = cores(), os.cpu_count() or 1
    quota = cpu_quota()
    text = f"{usable} of {all_cores} cores may be used"
    if quota is not None and quota < usable:
        few = max(1, int(quota))
        text += f", and a quota grants {quota:g} of them: engines start more threads, which wait. Commands "
        text += f"take --threads {few} or --workers {few}, runtime.load n_threads={few}"
        yield Finding(CHECK, NOTE, text, console.command("run", "BUNDLE", "PROMPT", "--threads", few))
    else:
        yield Finding(CHECK, OK, text)
    with suppress(OSError, AttributeError):  # Windows has none
        load = os.getloadavg()[0]
        text = f"load {load:.1f} on {all_cores} cores"
        if load > 1.5 * all_cores:
            yield Finding(CHECK, NOTE, f"{text}: other work takes them, and answers come later", "top")
        else:
            yield Finding(CHECK, OK, text)


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many cores' time a control group of Linux grants this process; None for no limit.

    Args:
        root: where the groups are mounted, as a container sees its own.
    """
    with suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):  # version 1
        quota, period = (
            (root / "cpu" / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period")
        )
        return None if int(quota) < 0 else int(quota) / int(period)
    return None


def _disk(name: str, path: Path, mend: str) -> Finding:
    there = path
    while not _is_there(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return Finding(CHECK, FAULT, f"{there}, where {name} go, is no folder", mend)
    if not os.access(there, os.W_OK):
        return Finding(CHECK, FAULT, f"{there}, where {name} go, cannot be written to", mend)
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB are free for {name} in {path}"
    if free < _LEAST:
        return Finding(CHECK, FAULT, text, mend)
    return Finding(CHECK, OK if free >= _COMFORTABLE else NOTE, text, "" if free >= _COMFORTABLE else mend)


def _is_there(path: Path) -> bool:
    """Tell whether a path is there; an OSError, for want of rights say, where that cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
