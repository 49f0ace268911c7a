"""Vector bytes on the command line: where they come from, where they go, and what their header says."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from .. import Basis, FrameError, MicroVector, load_basis, load_bundle
from ..formats.gguf import GGUFFile, MalformedGGUFError
from ..limits import VECTOR_FILE_BYTES
from ..projection import EXPLICIT
from ..system import atomic_write
from ..wire import expiry, frame, tags, text, values
from . import console

STREAM = "-"
"""Stands for stdin or stdout."""

_MAX_READ = 1 << 20  # of a text


def read(source: str) -> bytes:
    """Return the bytes of a vector from a file, or from stdin for `-`. A text is base64url or hexadecimal."""
    if source == STREAM:
        data = sys.stdin.buffer.read(_MAX_READ + 1)
    else:
        with open(source, "rb") as file:
            data = file.read(_MAX_READ + 1)
    if text.is_text(data):
        data = text.decode(data)
    if len(data) > VECTOR_FILE_BYTES:
        raise FrameError(
            f"{'stdin' if source == STREAM else source} has more than {VECTOR_FILE_BYTES:,} bytes, but 13 "
            "values take 27 to 125: this is no vector"
        )
    return data


def check_target(target: str, *, as_json: bool = False) -> None:
    """Check that bytes may be written there, before any work is done."""
    if target == STREAM and as_json:
        raise typer.BadParameter(
            "stdout carries the vector: pass -o FILE to have a report", param_hint="--json"
        )
    if target == STREAM:
        if sys.stdout.isatty():
            raise console.CommandError(
                "the vector is binary and stdout is a terminal: redirect it, or use -o FILE"
            )
        return
    path = Path(target)
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: choose another output, or remove it first")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Check that the directory that a file goes to is there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a directory: make it first, or choose another output")


def write(target: str, data: bytes, *, mode: int = 0o666) -> None:
    """Write bytes to a file, atomically, or to stdout."""
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        with atomic_write(Path(target).resolve(), mode=mode) as file:
            file.write(data)
    except OSError as error:  # its filename would be the temporary one
        raise console.CommandError(f"{target} could not be written: {error.strerror or error}") from error


def find_basis(path: Path) -> Basis:
    """Return the basis of a bundle, of a model with its basis beside it, or of a file of side tensors."""
    return load_basis(path) if is_basis(path) else load_bundle(path).basis


def is_basis(path: Path) -> bool:
    """Tell whether a file is one of side tensors, by its name or as far as its header can be read."""
    if not path.is_file() or path.name.endswith("basis.gguf"):
        return path.is_file()
    with suppress(MalformedGGUFError):
        return GGUFFile(path).value("adapter.type", str, "") == "tinylora"
    return False


def header(data: bytes) -> dict[str, Any]:
    """Return what the bytes of a vector say without a basis: nothing of it is verified."""
    length = len(data)
    if not length:
        raise FrameError("the vector is empty: expected a frame or a raw payload")
    if length % 2 == 0:
        counts = {dtype: values.counts(length, dtype) for dtype in frame.RAW_DTYPES}
        return {
            "form": "raw",
            "bytes": length,
            "values_if": {dtype: count[0] for dtype, count in counts.items() if count},
        }
    try:
        version, dtype, kind = frame.form(data)
    except FrameError as error:
        raise FrameError(
            f"the first of {length} bytes is {data[0]:#04x}, which begins no frame ({error}), and a raw "
            "payload has an even number of bytes"
        ) from None
    around = frame.HEADER_BYTES[version] + tags.SIZES[kind]
    found = values.counts(length - around, dtype)
    if not found:
        raise FrameError(
            f"the frame has {length} bytes, of which its header and {tags.NAMES[kind]} tag take {around}: "
            f"the rest are no whole {dtype} values; it was cut or padded on its way"
        )
    dated = version == frame.DATED
    return {
        "form": "frame",
        "bytes": length,
        "version": version,
        "dtype": dtype,
        "tag": tags.NAMES[kind],
        "basis_id": data[1:5].hex(),
        "sequence": frame.sequence_of(data),
        **({"until": expiry.day_date(int.from_bytes(data[7:9], "little")).isoformat()} if dated else {}),
        "count": found[-1],  # of int8, where a last byte of 0 may be none: the basis knows
    }


def summary(vector: MicroVector) -> str:
    """Return what a vector is, in a few words: `13 fp32 values, norm 0.31`."""
    values = console.counted(vector.values.size, f"{vector.dtype} value")
    return f"{values}, norm {vector.norm:.4g}"


def basis_facts(basis: Basis) -> dict[str, Any]:
    """Return what a basis is, for a report: its shape, and what a vector costs on the wire."""
    return {
        "digest": basis.digest,
        "architecture": basis.architecture,
        "modules": len(basis.modules),
        "kinds": list(basis.kinds()),
        "rank": basis.rank,
        "u": basis.u,
        "groups": basis.groups,
        "values": basis.size,
        "tying": basis.scheme,
        "seed": basis.seed,
        "projection": "learned" if basis.projection == EXPLICIT else "random",
        "prior": basis.prior is not None,
        "factorization": basis.factorization,
        "factor_dtype": {4: "f32", 2: "f16"}[basis.a[0].itemsize],
        "base_fingerprints": list(basis.base_fingerprints),
        "vector_bytes": {
            dtype: {
                **({"raw": values.payload_bytes(basis.size, dtype)} if dtype in frame.RAW_DTYPES else {}),
                **{
                    name.lower(): frame.frame_bytes(basis.size, dtype, kind)
                    for kind, name in tags.NAMES.items()
                },
            }
            for dtype in ("fp32", "bf16", "int8")
        },
    }
