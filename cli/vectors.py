"""Vectors on the command line: their bytes from and to files and streams, their headers, and their sizes."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from typer import BadParameter

from tinylora_edge import Bases, FrameError, MicroVector, load_bundle
from tinylora_edge.formats.gguf import GGUFFile, MalformedGGUFError
from tinylora_edge.formats.side_tensors import load_bases
from tinylora_edge.limits import VECTOR_FILE_BYTES
from tinylora_edge.projection import NUMBERS, RANK
from tinylora_edge.vector import FIRST_SEQUENCE, LAST_SEQUENCE
from tinylora_edge.wire import frame, tags, text, values
from tinylora_edge.wire.frame import day_date
from tinylora_edge.writes import atomic_write, open_file

from . import console

STREAM = "-"
"""Stands for stdin or stdout."""


def read(source: str) -> bytes:
    """Return the bytes of a vector from a file, or from stdin for `-`. A text is base64url or hexadecimal."""
    if source == STREAM:
        data = sys.stdin.buffer.read(text.TEXT_CHARACTERS + 1)
    else:
        with open_file(source) as file:
            data = file.read(text.TEXT_CHARACTERS + 1)
    data = data.removeprefix(codecs.BOM_UTF8)  # editors may write it into a text; no frame begins with it
    if text.is_text(data):
        data = text.decode(data)
    if len(data) > VECTOR_FILE_BYTES:
        where = "stdin" if source == STREAM else source
        raise FrameError(f"{where} has more than {VECTOR_FILE_BYTES:,} bytes, the most of any vector")
    return data


def read_stack(sources: list[str] | None) -> list[bytes]:
    """Return the bytes of a stack of vectors, of which at most one may come from stdin."""
    if (sources or []).count(STREAM) > 1:
        raise BadParameter("stdin has one vector: pass files for the others", param_hint="--vector")
    return [read(source) for source in sources or ()]


def check_target(target: str, *, as_json: bool = False) -> None:
    """Check, before any work is done, that a vector can be written to an output that is not there yet."""
    if target == STREAM:
        if as_json:
            why = "stdout carries the vector: pass -o FILE to have a report"
            raise BadParameter(why, param_hint="--json")
        if sys.stdout.isatty():
            why = "the vector is binary and stdout is a terminal: redirect it, or use -o FILE"
            raise console.CommandError(why)
        return
    path = Path(target)
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: choose another output, or remove it first")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Check that the directory of a file exists and can be written to."""
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        why = "is not a directory to write in: make it first, or choose another output"
        raise FileNotFoundError(f"{path.parent} {why}")


def write(target: str, data: bytes, *, mode: int = 0o666) -> None:
    """Write bytes to a file, atomically, or to stdout."""
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with atomic_write(target, mode=mode) as file:
        file.write(data)


def find_bases(path: Path) -> Bases:
    """Return the bases of a bundle, of a model with its basis beside it, or of a file of side tensors."""
    return load_bases(path) if is_basis(path) else load_bundle(path).bases


def is_basis(path: Path) -> bool:
    """Tell whether a file is one of side tensors, by its name or, if it is GGUF, by its header."""
    if not path.is_file():
        return False
    if path.name.endswith("basis.gguf"):
        return True
    with suppress(MalformedGGUFError):
        return GGUFFile(path).value("adapter.type", str, "") == "tinylora"
    return False


def header(data: bytes) -> dict[str, Any]:
    """Return what a frame says without its basis, unverified."""
    length = len(data)
    version, dtype, kind, basis_id, sequence, until = frame.head(data)
    around, name = frame.HEADER_BYTES[version] + tags.SIZES[kind], tags.NAMES[kind]
    if length <= around:
        raise FrameError(f"the frame has {length} bytes, and its header and {name} tag alone take {around}")
    found: dict[str, Any] = {"bytes": length, "version": version, "dtype": dtype, "tag": name}
    found |= {"basis_id": basis_id, "sequence": sequence}
    return found if until is None else found | {"until": day_date(until).isoformat()}


def summary(vector: MicroVector) -> str:
    """Return a vector in a few words: `13 fp32 values, norm 0.31`."""
    values = console.counted(vector.values.size, f"{vector.dtype} value")
    return f"{values}, norm {vector.norm:.4g}" + ("" if vector.under is None else ", on what lies beneath")


def next_sequence(before: MicroVector | None) -> int:
    """Return the sequence of a vector that was learned from another one, or from none."""
    if before is None:
        return FIRST_SEQUENCE
    if before.sequence == LAST_SEQUENCE:
        raise console.CommandError(
            f"sequence {before.sequence} is the last: pack the start for another user, with --sequence 1"
        )
    return before.sequence + 1


def factors_facts(bases: Bases) -> dict[str, Any]:
    """Return the facts on a model's factors for a report, with the `sizes` of vectors."""
    factors = bases.factors
    about: dict[str, Any] = {"factors": factors.digest, "architecture": factors.architecture}
    about |= {"modules": len(factors.modules), "kinds": factors.kinds, "rank": factors.rank}
    about |= {"outputs": factors.outputs, "factor_dtype": factors.dtype}
    about["projections"] = [projection.descriptor for projection in bases.projections]
    return about | {"fingerprints": list(bases.fingerprints), "frame_bytes": sizes(bases)}


def sizes(bases: Bases) -> dict[str, dict[str, int]]:
    """Return by option the numbers of a vector, and the bytes of its frame with a checksum by dtype."""
    modules, most = len(bases.factors.modules), bases.factors.rank
    tiled = (min(NUMBERS, modules), modules) if most >= RANK else ()
    numbers = sorted({*(p.size for p in bases.projections), *tiled})
    found: dict[str, tuple[int, values.Entries]] = {f"--numbers {n}": (n, ()) for n in numbers}
    made = {f"--size {name}": bases.basis(rank=shape) for name, shape in bases.factors.sizes.items()}
    found |= {option: (basis.size, basis.entries) for option, basis in made.items()}

    def of(n: int, entries: values.Entries) -> dict[str, int]:
        dtypes = "bf16", "int8", *(["q4"] if entries else [])
        lengths = {dtype: frame.frame_bytes(n, dtype, tags.CRC32, entries=entries) for dtype in dtypes}
        return {"numbers": n, **lengths}

    return {option: of(*each) for option, each in found.items()}
