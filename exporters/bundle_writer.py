"""Bundles as they are written, complete or not at all, and the manifest: what an export did."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..basis import Bases
from ..documents import write_json
from ..errors import ExportError
from ..formats.bundle import BASE_NAME, BASE_STEM, BASIS_NAME, MANIFEST_NAME
from ..formats.gguf import gguf_paths, split_name
from ..formats.side_tensors import save_bases
from ..system import __version__, atomic_write, sync_directory

_FORMAT = 2
_SECTIONS = ("source", "base", "onnx", "basis", "factors")

Sections = Mapping[str, dict[str, Any] | None]
"""Sections of a manifest: `source` (where the files came from), `base` (the GGUF), `onnx` (the graph),
and `factors` (their quality). One that is None is left out."""


def refuse_existing(output: Path) -> None:
    """Raise an ExportError where something is at the output already."""
    if output.exists() or output.is_symlink():
        raise ExportError(f"{output} exists already: choose another output, or remove it first")


def fill_bundle(bundle: Path, bases: Bases, sections: Sections, *, base: Path | None = None) -> str | None:
    """Put side tensors, GGUF (whose fingerprint is their first) and manifest into a bundle that is made.

    Returns how the GGUF came into it: `hard link` or `copy`; None where there is none.
    """
    placed, sections = None, dict(sections)
    save_bases(bases, bundle / BASIS_NAME)
    if base is not None:
        files = gguf_paths(base)
        names = [BASE_NAME]
        if len(files) > 1:
            names = [split_name(BASE_STEM, number, len(files)) for number in range(1, len(files) + 1)]
        for file, name in zip(files, names, strict=True):
            placed = place_base(file, bundle / name)
        sections["base"] = {
            "file": names[0],
            "name": base.name,
            "bytes": sum(file.stat().st_size for file in files),
            "fingerprint": bases.fingerprints[0],
        }
    write_json(bundle / MANIFEST_NAME, _manifest(bases, sections))
    return placed


@contextmanager
def new_bundle(output: Path) -> Iterator[Path]:
    """Give a directory to fill. On leaving it becomes `output` in one rename; on an error it is removed."""
    refuse_existing(output)
    partial = output.parent / f".{output.name}.partial"
    try:
        partial.mkdir()
    except FileExistsError:
        raise ExportError(
            f"{partial} is there: {output} is being written, or an export was killed. Remove it then"
        ) from None
    except OSError as error:
        raise ExportError(f"cannot write to {output.parent}: {error.strerror or error}") from None
    except BaseException:  # a signal, when it had just been made
        with suppress(OSError):
            partial.rmdir()
        raise
    try:
        yield partial
        sync_directory(partial)
        os.rename(partial, output)
        sync_directory(output.parent)
    except OSError as error:
        raise ExportError(_explained(output, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def place_base(source: Path, target: Path) -> str:
    """Put the base into a bundle and return how: `hard link` or `copy`."""
    source = source.resolve()
    with suppress(OSError):
        os.link(source, target)
        return "hard link"
    copy_file(source, target)
    return "copy"


def copy_file(source: Path, target: Path) -> None:
    """Make `target` a file of its own with the content of `source`."""
    with atomic_write(target) as out, open(source, "rb") as file:
        shutil.copyfileobj(file, out, 1 << 24)


def _manifest(bases: Bases, sections: Sections) -> dict[str, Any]:
    factors = bases.factors
    described = {
        "file": BASIS_NAME,
        "factors": factors.digest,
        "modules": len(factors.modules),
        "rank": factors.rank,
        "factor_dtype": factors.dtype,
        "factorization": factors.factorization,
        "projections": [projection.descriptor for projection in bases.projections],
    }
    found = dict(sections) | {"basis": described}
    return {
        "format": _FORMAT,
        "tool": f"tinylora-edge {__version__}",
        "architecture": factors.architecture,
        **{name: found[name] for name in _SECTIONS if found.get(name) is not None},
    }


def _explained(output: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += f" ({shutil.disk_usage(output.parent).free:,} bytes free)"
    return f"{output} could not be written: {reason}. Nothing half-made was left behind"
