"""Stock GGUF LoRAs: a vector for every program that is built on llama.cpp, with no code of ours in it.

Two forms. With u = 1, W + v[g] (B P) A is a LoRA whose scale is v[g]: `write_groups` writes G files once,
and a vector is G scales, which stock llama-server takes for each request:

    llama-server -m base.gguf --lora-init-without-apply --lora-scaled group-00.gguf:0,group-01.gguf:0,...
    POST /completion      {"prompt": ..., "lora": [{"id": 0, "scale": 0.1}, ...]}
    POST /lora-adapters   [{"id": 0, "scale": 0.1}, ...]

With any u, `write_folded` writes one file, (A, B R), with one vector folded into it: for `ADAPTER` in an
Ollama Modelfile, LM Studio, llama.rn, or `--lora`.

An adapter that a request does not name has scale 0 there, so the list always names all of them. A request
with another list than the one before empties the slot's cache; one without a list, or after `POST
/lora-adapters`, does not, and goes on from keys of the vector before unless it says `"cache_prompt": false`.
So send the list in every request: `scales` of a zero vector for the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...documents import parse_json
from ...errors import BasisMismatchError, ExportError, VectorError
from ...formats.gguf import FLOAT32, STRING, GGUFFile, MalformedGGUFError, write
from ...system import atomic_write
from ...vector import MicroVector

_TOLERANCE = 1e-4  # of a folded B, relative: float32 products of other libraries differ by 1e-6


def write_groups(basis: Basis, directory: str | PathLike[str]) -> list[Path]:
    """Write one LoRA a group, for vectors that travel as scales; return their paths in the order of groups.

    Args:
        basis: with u = 1.
        directory: is made where it does not exist; files of the same names are replaced.

    Raises:
        ExportError: u is not 1, or a file cannot be written.
    """
    _need_one(basis)
    target = Path(directory)
    width = max(2, len(str(basis.groups - 1)))
    paths = []
    try:
        target.mkdir(exist_ok=True)
        for group in range(basis.groups):
            members = np.flatnonzero(basis.tying == group)
            pairs = {
                basis.modules[m]: (basis.a[m], np.asarray(basis.b[m], np.float32) @ basis.projections[m, 0])
                for m in members
            }
            path = target / f"group-{group:0{width}d}.gguf"
            name = f"tinylora {basis.id} group {group} of {basis.groups}"
            _write(path, basis, pairs, name)
            paths.append(path)
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}") from error
    return paths


def write_folded(basis: Basis, vector: MicroVector, path: str | PathLike[str]) -> None:
    """Write one LoRA that is the basis with a vector in it, at scale 1.

    Raises:
        VectorError: the vector does not fit the basis.
        ExportError: the file cannot be written.
    """
    r = basis.R(vector)
    pairs = {
        module: (basis.a[m], np.asarray(basis.b[m], np.float32) @ r[m])
        for m, module in enumerate(basis.modules)
    }
    try:
        _write(Path(path), basis, pairs, f"tinylora {basis.id} vector of sequence {vector.sequence}")
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error.strerror or error}") from error


def scales(basis: Basis, vector: MicroVector) -> list[dict[str, Any]]:
    """Return a vector as llama-server takes it, in `lora` of a request and at `/lora-adapters`.

    Ids are the positions of the files of `write_groups` on the server's command line.

    Raises:
        ExportError: u is not 1.
        VectorError: the vector does not fit the basis.
    """
    _need_one(basis)
    values = basis.values(vector)[:, 0]
    return [{"id": group, "scale": float(value)} for group, value in enumerate(values)]


def from_scales(basis: Basis, text: str | bytes | Sequence[Mapping[str, Any]]) -> MicroVector:
    """Return the vector in a list of scales, as `scales` makes it and `GET /lora-adapters` returns it.

    Args:
        basis: with u = 1.
        text: JSON, or what it means. Further fields, such as `path`, count nothing.

    Raises:
        ExportError: u is not 1.
        VectorError: the list does not name every group once, with a finite number.
    """
    _need_one(basis)
    try:
        entries = parse_json(text) if isinstance(text, str | bytes) else text
        found = {entry["id"]: entry["scale"] for entry in entries}
        fits = (
            len(found) == len(entries)
            and set(found) == set(range(basis.groups))
            and all(type(scale) in (int, float) and math.isfinite(scale) for scale in found.values())
        )
    except (ValueError, TypeError, KeyError) as error:
        raise VectorError(
            f"this is no list of scales ({error!r}): expected [{{'id': 0, 'scale': 0.1}}, ...]"
        ) from None
    if not fits:
        raise VectorError(
            f"the list has {len(found)} ids, but basis {basis.id} has {basis.groups} groups: expected each "
            f"id from 0 to {basis.groups - 1} once, with a finite scale"
        )
    return MicroVector(basis.values([found[group] for group in range(basis.groups)]))


def from_folded(basis: Basis, path: str | PathLike[str]) -> MicroVector:
    """Return the vector in a LoRA that `write_folded` made, by least squares over all modules.

    Raises:
        BasisMismatchError: the file is not this basis with a vector in it.
        VectorError: it is no GGUF LoRA.
    """
    try:
        file = GGUFFile(path)
        kind, alpha = file.value("adapter.type", str, ""), file.value("adapter.lora.alpha", float, 0.0)
        if kind != "lora":
            raise VectorError(f"{path} is no GGUF LoRA: its adapter.type is {kind!r}")
        found = {name: file.array(entry).astype(np.float32) for name, entry in file.tensors.items()}
    except MalformedGGUFError as error:
        raise VectorError(f"{path} is no usable GGUF LoRA: {error}") from None
    factor = alpha / basis.rank if alpha else 1.0
    expected = {f"{module}.lora_{side}" for module in basis.modules for side in "ab"}
    if set(found) != expected:
        raise BasisMismatchError(
            f"{path} adapts other modules than basis {basis.id}: {len(set(found) ^ expected)} tensors differ"
        )
    normal = np.zeros((basis.size, basis.size))
    right = np.zeros(basis.size)
    for m, module in enumerate(basis.modules):
        columns, wanted = _columns(basis, m), _wanted(basis, m, found, factor, path, module)
        rows = slice(basis.tying[m] * basis.u, (basis.tying[m] + 1) * basis.u)
        normal[rows, rows] += columns @ columns.T
        right[rows] += columns @ wanted
    values = np.linalg.lstsq(normal, right, rcond=None)[0].reshape(basis.groups, basis.u)
    for m, module in enumerate(basis.modules):
        gap = np.linalg.norm(
            values[basis.tying[m]] @ _columns(basis, m) - _wanted(basis, m, found, factor, path, module)
        )
        size = np.linalg.norm(_columns(basis, m)) * max(float(np.linalg.norm(values)), 1e-30)
        if not gap <= _TOLERANCE * size:
            raise BasisMismatchError(
                f"{module} in {path} is {gap / size:.2g} away from anything that basis {basis.id} can "
                "make: the file is another adapter"
            )
    return MicroVector(values.astype(np.float32))


def server_arguments(paths: Iterable[str | PathLike[str]]) -> list[str]:
    """Return what llama-server is started with besides the model, so that no adapter applies by itself.

    Scale 0 is needed besides `--lora-init-without-apply`: a request without `lora` takes every adapter at
    the scale of the command line, 1 with `--lora` alone. The cache of prompts in memory is off, since its
    entries do not say which vector they were computed with.
    """
    scaled = ",".join(f"{path}:0" for path in paths)
    return ["--lora-init-without-apply", "--lora-scaled", scaled, "--cache-ram", "0"]


def _columns(basis: Basis, m: int) -> NDArray[np.float64]:
    """What one unit of each value of the module's group adds to B R: [u, size of B]."""
    b = np.asarray(basis.b[m], np.float64)
    return np.stack([(b @ p).reshape(-1) for p in basis.projections[m].astype(np.float64)])


def _wanted(
    basis: Basis, m: int, found: Mapping[str, NDArray[np.float32]], factor: float, path: Any, module: str
) -> NDArray[np.float64]:
    a, b = found[f"{module}.lora_a"], found[f"{module}.lora_b"]
    if b.shape != basis.b[m].shape or not np.array_equal(a, np.asarray(basis.a[m], np.float32)):
        raise BasisMismatchError(
            f"{module} in {path} has another A than basis {basis.id}: the file was made from another basis"
        )
    wanted: NDArray[np.float64] = b.astype(np.float64).reshape(-1) * factor
    return wanted


def _need_one(basis: Basis) -> None:
    if basis.u != 1:
        raise ExportError(
            f"basis {basis.id} has u = {basis.u}: its vectors are no scales of fixed adapters. Write a "
            "folded LoRA for each vector, or export a basis with u = 1 (export --u 1)"
        )


def _write(path: Path, basis: Basis, pairs: Mapping[str, tuple[Any, Any]], name: str) -> None:
    metadata = [
        ("general.type", "adapter", STRING),
        ("general.name", name, STRING),
        ("adapter.type", "lora", STRING),
        # Readers that know alpha compute scale * alpha / rank: the scale itself, as where it is left out.
        ("adapter.lora.alpha", float(basis.rank), FLOAT32),
    ]
    tensors: dict[str, NDArray[Any]] = {}
    for module, (a, b) in pairs.items():
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(b, np.float32)
    with atomic_write(path) as file:
        write(file, basis.architecture, metadata, tensors)  # type: ignore[arg-type]
