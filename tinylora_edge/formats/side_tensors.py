"""Side tensors: a basis as a GGUF file, and the fingerprint of the bases that it fits."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis, packed_text
from ..errors import BaseMismatchError, BasisError, CorruptBasisError
from ..projection import EXPLICIT
from ..system import atomic_write
from . import gguf
from .gguf import FLOAT32, STRING, UINT32, UINT64, GGUFFile, MalformedGGUFError

VERSION = 1
_EDGE_BYTES = 4096  # of each tensor's data, at both ends, go into a fingerprint


def save_basis(basis: Basis, path: str | PathLike[str]) -> None:
    """Write a basis as GGUF side tensors, atomically (docs/FORMAT.md, "Side tensors").

    Raises:
        OSError: the file cannot be written; what was there before stays.
    """
    metadata: list[tuple[str, Any, Any]] = [
        ("general.type", "adapter", STRING),
        ("adapter.type", "tinylora", STRING),
        ("tinylora.version", VERSION, UINT32),
        ("tinylora.rank", basis.rank, UINT32),
        ("tinylora.u", basis.u, UINT32),
        ("tinylora.groups", basis.groups, UINT32),
        ("tinylora.seed", basis.seed, UINT64),
        ("tinylora.projection", basis.projection, STRING),
        ("tinylora.factorization", basis.factorization, STRING),
        ("tinylora.tying.scheme", basis.scheme, STRING),
        ("tinylora.tying.groups", basis.tying.tolist(), UINT32),
        ("tinylora.modules", list(basis.modules), STRING),
        ("tinylora.digest", basis.digest, STRING),
    ]
    if basis.base_fingerprints:  # GGUFWriter knows no empty arrays
        metadata.insert(-1, ("tinylora.base.fingerprints", list(basis.base_fingerprints), STRING))
    if basis.prior_mean is not None and basis.prior_covariance is not None:
        metadata.insert(-1, ("tinylora.prior.mean", basis.prior_mean.tolist(), FLOAT32))
        covariance = basis.prior_covariance.reshape(-1).tolist()
        metadata.insert(-1, ("tinylora.prior.covariance", covariance, FLOAT32))
    tensors: dict[str, NDArray[Any]] = {}
    for position, module in enumerate(basis.modules):
        tensors[f"{module}.tinylora_a"] = basis.a[position]
        tensors[f"{module}.tinylora_b"] = basis.b[position]
        if basis.p:
            tensors[f"{module}.tinylora_p"] = basis.p[position]
    with atomic_write(path) as file:
        gguf.write(file, basis.architecture, metadata, tensors)  # type: ignore[arg-type]


def load_basis(path: str | PathLike[str]) -> Basis:
    """Read a basis from GGUF side tensors. The factors stay in the file, memory-mapped.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptBasisError: it is not a file of side tensors, it is damaged or truncated, or its content
            does not give the digest that it states.
    """
    try:
        file = GGUFFile(path)
        basis, stated = _read(file), file.value("tinylora.digest", str)
    except (MalformedGGUFError, BasisError) as error:
        raise CorruptBasisError(
            f"{path} is not a usable basis: {error}. Export or download it again"
        ) from None
    if basis.digest != stated:
        raise CorruptBasisError(
            f"{path} is damaged: it states digest {stated[:16]}..., but its content gives "
            f"{basis.digest[:16]}.... Export or download it again"
        )
    return basis


def fingerprint(base: GGUFFile, modules: Sequence[str]) -> str:
    """Return the fingerprint of a GGUF base: SHA-256 in hexadecimal.

    Over the architecture and, for each module in order, its name, shape, type, and the first and last
    4,096 bytes of its data: milliseconds, however large the file (docs/FORMAT.md, "Fingerprint").

    Raises:
        BaseMismatchError: the base lacks one of the modules.
    """
    total = hashlib.sha256(b"tinylora base 1\n")
    total.update(packed_text(base.architecture))
    for module in modules:
        tensor = base.tensors.get(module)
        if tensor is None:
            raise BaseMismatchError(
                f"the base has no tensor {module}, which the basis adapts: this is another model"
            )
        dims = len(tensor.shape)
        total.update(packed_text(module) + struct.pack(f"<I{dims}QI", dims, *tensor.shape, tensor.type))
        data = base.data(tensor)
        total.update(data[:_EDGE_BYTES].data)
        total.update(data[-_EDGE_BYTES:].data)
    return total.hexdigest()


def check_shapes(base: GGUFFile, basis: Basis) -> None:
    """Check that a GGUF has a basis's architecture and every module of it, in its shape.

    llama.cpp ends the process where factors have another number of dimensions than the weight.

    Raises:
        BaseMismatchError: the architecture differs, or a module is missing or has another shape.
    """
    if base.architecture != basis.architecture:
        raise BaseMismatchError(
            f"the base has architecture {base.architecture!r}, but the basis is for {basis.architecture!r}"
        )
    for position, module in enumerate(basis.modules):
        a, b = basis.a[position], basis.b[position]
        expected = (*b.shape[:-1], a.shape[-1])
        tensor = base.tensors.get(module)
        if tensor is None or tensor.shape != expected:
            found = "no such tensor" if tensor is None else f"shape {tensor.shape}"
            raise BaseMismatchError(f"{module} has shape {expected} in the basis, but {found} in the base")


def _read(file: GGUFFile) -> Basis:
    kind = (file.value("general.type", str, ""), file.value("adapter.type", str, ""))
    if kind != ("adapter", "tinylora"):
        raise MalformedGGUFError(f"its general.type and adapter.type are {kind}, not ('adapter', 'tinylora')")
    version = file.value("tinylora.version", int)
    if version != VERSION:
        raise MalformedGGUFError(f"it has version {version}, but this release reads version {VERSION}")
    modules: list[str] = file.value("tinylora.modules", list)
    projection = file.value("tinylora.projection", str)
    u, groups = file.value("tinylora.u", int), file.value("tinylora.groups", int)
    tying: NDArray[Any] = file.value("tinylora.tying.groups", np.ndarray)
    if tying.dtype.kind not in "iu":
        raise MalformedGGUFError(f"its tinylora.tying.groups are {tying.dtype}, expected integers")
    return Basis(
        architecture=file.architecture,
        modules=tuple(modules),
        rank=file.value("tinylora.rank", int),
        u=u,
        groups=groups,
        seed=file.value("tinylora.seed", int),
        factorization=file.value("tinylora.factorization", str),
        projection=projection,
        scheme=file.value("tinylora.tying.scheme", str),
        tying=tying.astype(np.int32),
        a=tuple(_tensor(file, f"{m}.tinylora_a") for m in modules),
        b=tuple(_tensor(file, f"{m}.tinylora_b") for m in modules),
        p=tuple(_tensor(file, f"{m}.tinylora_p") for m in modules) if projection == EXPLICIT else (),
        base_fingerprints=tuple(file.value("tinylora.base.fingerprints", list, [])),
        prior_mean=_floats(file, "tinylora.prior.mean", (groups * u,)),
        prior_covariance=_floats(file, "tinylora.prior.covariance", (groups * u, groups * u)),
    )


def _floats(file: GGUFFile, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Return an array of f32 in its shape, a copy, or None where the file lacks the key."""
    if key not in file:
        return None
    values: NDArray[Any] = file.value(key, np.ndarray)
    if values.dtype != np.float32:
        raise MalformedGGUFError(f"its {key} are {values.dtype}, expected float32")
    if values.size != math.prod(shape):
        raise MalformedGGUFError(f"its {key} has {values.size} numbers, expected {math.prod(shape)}")
    return values.astype(np.float32).reshape(shape)


def _tensor(file: GGUFFile, name: str) -> NDArray[Any]:
    if name not in file.tensors:
        raise MalformedGGUFError(f"it lacks the tensor {name}")
    return file.array(file.tensors[name])
