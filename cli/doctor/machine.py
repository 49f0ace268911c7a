"""The machine: cores that may be used, what else runs on them, and room for models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..._system import cores
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
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    for name, path, mend in (
        ("bundles", Path.cwd() if bundle is None else bundle.absolute().parent, "cd FOLDER"),
        ("models of the hub", cache, "export HF_HOME=FOLDER"),
        ("temporary files", Path(tempfile.gettempdir()), "export TMPDIR=FOLDER"),
    ):
        yield _disk(name, path, mend)


def _processors() -> Iterator[Finding]:
    usable, all_cores = cores(), os.cpu_count() or 1
    quota = cpu_quota()
    text = f"{usable} of {all_cores} cores may be used"
    if quota is not None and quota < usable:
        text += f", and a quota grants {quota:g} of them: engines start {usable} threads, and wait"
        yield Finding(CHECK, NOTE, text, f"export OMP_NUM_THREADS={max(1, int(quota))}")
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
    while not there.exists() and there != there.parent:
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
