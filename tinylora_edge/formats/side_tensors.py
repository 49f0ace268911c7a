"""Side tensors: factors and projections in a GGUF file beside the base, and the fingerprint of a base.

docs/FORMAT.md, "Side tensors", has the keys and the tensors.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..basis import Bases
from ..errors import BaseMismatchError, BasisError, CorruptBasisError
from ..factors import Factors, packed_text
from ..projection import Projection
from ..writes import atomic_write
from . import gguf
from .gguf import STRING, UINT32, GGUFFile, MalformedGGUFError

VERSION = 2
_EDGE_BYTES = 4096  # what a fingerprint covers of each end of a tensor's data


def save_bases(bases: Bases, path: str | PathLike[str]) -> None:
    """Write factors and projections as GGUF side tensors, atomically. OSError: that failed."""
    factors = bases.factors
    metadata: list[tuple[str, Any, Any]] = [
        ("general.type", "adapter", STRING),
        ("adapter.type", "tinylora", STRING),
        ("tinylora.version", VERSION, UINT32),
        ("tinylora.rank", factors.rank, UINT32),
        *([("tinylora.outputs", factors.outputs, UINT32)] if factors.outputs > factors.rank else []),
        ("tinylora.factorization", factors.factorization, STRING),
        ("tinylora.modules", list(factors.modules), STRING),
        ("tinylora.factors", factors.digest, STRING),
    ]
    for key, texts in (
        ("tinylora.base.fingerprints", bases.fingerprints),
        ("tinylora.projections", [projection.descriptor for projection in bases.projections]),
    ):
        if texts:  # GGUFWriter knows no empty arrays
            metadata.append((key, list(texts), STRING))
    tensors: dict[str, NDArray[Any]] = {}
    for module, a, b in zip(factors.modules, factors.a, factors.b, strict=True):
        tensors[f"{module}.tinylora_a"] = a
        tensors[f"{module}.tinylora_b"] = b
    for i, projection in enumerate(bases.projections):
        if projection.stored is not None:
            tensors[f"tinylora_p.{i}"] = projection.stored
        if projection.prior is not None:
            tensors[f"tinylora_prior.{i}.mean"] = projection.prior.mean.astype(np.float32)
            tensors[f"tinylora_prior.{i}.covariance"] = projection.prior.covariance.astype(np.float32)
    with atomic_write(path) as file:
        gguf.write(file, factors.architecture, metadata, tensors)


def load_bases(path: str | PathLike[str]) -> Bases:
    """Read what `save_bases` wrote. The factors stay in the file, memory-mapped.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptBasisError: it is not a file of side tensors, it is damaged or truncated, or its content
            does not give the digests that it states.
    """
    try:
        file = GGUFFile(path)
        bases, stated = _read(file), file.value("tinylora.factors", str)
    except (MalformedGGUFError, BasisError) as error:
        raise CorruptBasisError(
            f"{path} is not a usable basis: {error}. Export or download it again"
        ) from None
    if bases.factors.digest != stated:
        raise CorruptBasisError(
            f"{path} is damaged: it states factors {stated[:16]}..., but its content gives "
            f"{bases.factors.digest[:16]}.... Export or download it again"
        )
    return bases


def fingerprint(base: GGUFFile, modules: Sequence[str]) -> str:
    """Return the fingerprint of a GGUF base: SHA-256 in hexadecimal.

    Over the architecture and, for each module in order, its name, shape, type, and the first and last
    4,096 bytes of its data: milliseconds, however large the file (docs/FORMAT.md, "Fingerprint").
    BaseMismatchError: the base lacks one of the modules.
    """
    total = hashlib.sha256(b"tinylora base 1\n")
    total.update(packed_text(base.architecture))
    for module in modules:
        tensor = base.tensors.get(module)
        if tensor is None:
            raise BaseMismatchError(
                f"the base has no tensor {module}, which has factors: this is another model"
            )
        dims = len(tensor.shape)
        total.update(packed_text(module) + struct.pack(f"<I{dims}QI", dims, *tensor.shape, tensor.type))
        data = base.data(tensor)
        total.update(data[:_EDGE_BYTES].data)
        total.update(data[-_EDGE_BYTES:].data)
    return total.hexdigest()


def check_shapes(base: GGUFFile, factors: Factors) -> None:
    """Check that a GGUF has the architecture and all modules of factors, in the same shapes.

    llama.cpp would end the process if factors had other dimensions than a weight.

    BaseMismatchError: the architecture differs, or a module is missing or has another shape.
    """
    if base.architecture != factors.architecture:
        raise BaseMismatchError(
            f"the base has architecture {base.architecture!r}, but the factors are of "
            f"{factors.architecture!r}: load the base that they were exported for"
        )
    for position, module in enumerate(factors.modules):
        a, b = factors.a[position], factors.b[position]
        expected = (*b.shape[:-1], a.shape[-1])
        tensor = base.tensors.get(module)
        if tensor is None or tensor.shape != expected:
            found = "no such tensor" if tensor is None else f"shape {tensor.shape}"
            raise BaseMismatchError(
                f"{module} has shape {expected} in the factors, but {found} in the base: it is another model"
            )


def _read(file: GGUFFile) -> Bases:
    kind = (file.value("general.type", str, ""), file.value("adapter.type", str, ""))
    if kind != ("adapter", "tinylora"):
        raise MalformedGGUFError(f"its general.type and adapter.type are {kind}, not ('adapter', 'tinylora')")
    version = file.value("tinylora.version", int)
    if version != VERSION:
        raise MalformedGGUFError(
            f"it has version {version}, but this release reads version {VERSION}: export the model again, "
            "which takes seconds, and make its vectors anew"
        )
    modules = tuple(file.value("tinylora.modules", list))
    factors = Factors(
        architecture=file.architecture,
        modules=modules,
        rank=file.value("tinylora.rank", int),
        factorization=file.value("tinylora.factorization", str),
        a=tuple(_tensor(file, f"{module}.tinylora_a") for module in modules),
        b=tuple(_tensor(file, f"{module}.tinylora_b") for module in modules),
    )
    outputs = file.value("tinylora.outputs", int, factors.rank)
    if outputs != factors.outputs:
        raise MalformedGGUFError(f"it states {outputs} outputs, but its factors have {factors.outputs}")
    listed: list[str] = file.value("tinylora.projections", list, [])
    descriptors = listed[: limits.PROJECTIONS + 1]  # with one too many, `Bases` refuses them
    projections = tuple(_projection(file, i, text, modules) for i, text in enumerate(descriptors))
    return Bases(factors, projections, tuple(file.value("tinylora.base.fingerprints", list, [])))


def _projection(file: GGUFFile, i: int, descriptor: str, modules: tuple[str, ...]) -> Projection:
    if not descriptor.startswith("learned "):
        return Projection.read(descriptor, modules)
    names = [f"tinylora_prior.{i}.{part}" for part in ("mean", "covariance")]
    prior = None
    if any(name in file.tensors for name in names):
        mean, covariance = (_floats(file, name) for name in names)
        prior = mean, covariance
    made = Projection.learned(modules, _floats(file, f"tinylora_p.{i}"), prior)
    if made.descriptor != descriptor:
        raise MalformedGGUFError(
            f"it names the projection {descriptor[:48]!r}..., but tinylora_p.{i} gives "
            f"{made.descriptor[:48]!r}..."
        )
    return made


def _floats(file: GGUFFile, name: str) -> NDArray[Any]:
    array = _tensor(file, name)
    if array.dtype != np.float32:
        raise MalformedGGUFError(f"{name} is {array.dtype}, expected float32")
    return array


def _tensor(file: GGUFFile, name: str) -> NDArray[Any]:
    if name not in file.tensors:
        raise MalformedGGUFError(f"it lacks the tensor {name}")
    return file.array(file.tensors[name])
