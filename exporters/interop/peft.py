"""PEFT: TinyLoRA checkpoints read and written, and plain LoRAs with a vector folded in.

PEFT 0.18 and later have a TinyLoRA of their own: `sqrt` factors from an SVD when it is created, projections
from torch's generator, and one number, `weight_tying`, for the map from layers to groups:

    G = max(1, round(M (1 - weight_tying)))        layer j reads group min(j // (M // G), G - 1)

Everything that it computes is in its checkpoint, so a basis can carry it exactly, as explicit projections
and an explicit map. The other way holds where that formula can say the map. `tiled` with G groups on M
layers can be said if G divides M; 13 groups on 196 layers cannot: PEFT has 12 groups of 15 and one of 16.

Format: peft/tuners/tinylora of PEFT 0.21.
"""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import BaseMismatchError, ExportError, MissingExtraError, UnsupportedModelError
from ...factorization import AGREEMENT, SQRT, distance
from ...formats.gguf import MalformedGGUFError, open_gguf
from ...formats.side_tensors import check_shapes, fingerprint
from ...limits import MODULES, PROJECTION_ENTRIES, RANK, VALUES
from ...modules import canonical_order
from ...projection import EXPLICIT
from ...system import atomic_write
from ...vector import MicroVector
from .. import bundle_writer
from ..weights.gguf import GGUFWeights
from ..weights.safetensors import read_safetensors
from .layers import Layers, check_counted, layer_of
from .peft_files import CONFIG, WEIGHTS, existing, read_config, write_checkpoint

VECTOR = "vector.bin"

_V = re.compile(r"base_model\.tinylora_v\.(\d+)")


def read_tinylora(
    checkpoint: str | PathLike[str], model: str | PathLike[str], *, base: str | PathLike[str] | None = None
) -> tuple[Basis, MicroVector]:
    """Return a PEFT TinyLoRA checkpoint as a basis and a vector with the same function.

    Args:
        checkpoint: directory that `save_pretrained` wrote.
        model: Hugging Face directory of the model that it was trained on.
        base: GGUF that is deployed; the basis is then exported for it, after a look at its weights.

    Raises:
        ExportError: a file is missing or damaged, or is no such checkpoint.
        UnsupportedModelError: it adapts layers, or in a way, that a basis cannot.
        BaseMismatchError: `base` is another model.
        MissingExtraError: the projections were not saved, and torch, which makes them again, is missing.
    """
    directory = Path(checkpoint)
    config = read_config(directory, "TINYLORA")
    layers = Layers(Path(model))
    stored = read_safetensors(existing(directory / WEIGHTS))
    tensors = {name: entry.array(name) for name, entry in stored.items()}
    modules = _modules(tensors, layers, directory)
    rank, u = _positive(config, "r", directory), _positive(config, "u", directory)
    rows = sorted((int(match[1]), name) for name in tensors if (match := _V.fullmatch(name)))
    groups = len(rows)
    if not rows or [number for number, _ in rows] != list(range(groups)) or groups > len(modules):
        raise ExportError(
            f"{directory} has vectors for groups {[number for number, _ in rows][:20]}, for {len(modules)} "
            "layers: expected 0, 1, 2, ..., at most one a layer"
        )
    entries = len(modules) * u * rank**2
    if rank > RANK or groups * u > VALUES or entries > PROJECTION_ENTRIES:
        raise ExportError(
            f"{directory / CONFIG} declares rank {rank} and {groups} groups x u {u} for {len(modules)} "
            f"layers: at most rank {RANK}, {VALUES:,} values and {PROJECTION_ENTRIES:,} entries of projection"
        )
    for _, name in rows:
        _check_shape(directory, name, tensors[name], (u,))
    values = np.stack([tensors[name] for _, name in rows])
    seed = _seed(config, directory)
    a, b, p = [], [], []
    for position, module in enumerate(modules):
        prefix = f"base_model.model.{layers.name(module)}."
        one_a, one_b = tensors[f"{prefix}tinylora_A"], tensors[f"{prefix}tinylora_B"]
        if one_a.ndim != 2 or one_b.ndim != 2:
            raise ExportError(
                f"{directory / WEIGHTS} has factors of shapes {one_a.shape} and {one_b.shape} for "
                f"{prefix[:-1]}: expected two matrices"
            )
        if one_a.shape[0] != rank or one_b.shape[1] != rank:
            raise UnsupportedModelError(
                f"{prefix[:-1]} has rank {one_a.shape[0]}, and the others {rank}: a basis has one rank. "
                "Leave the layer out of target_modules"
            )
        shape = (len(one_b), one_a.shape[1])
        if shape != layers.shapes[module]:
            raise ExportError(
                f"{prefix[:-1]} is {shape} in {directory / WEIGHTS}, but {layers.shapes[module]} in {model}: "
                "it was trained on another model"
            )
        a.append(one_a)
        b.append(layers.to_gguf_rows(module, one_b))
        saved = tensors.get(f"{prefix}tinylora_P")
        if saved is not None:
            _check_shape(directory, f"{prefix}tinylora_P", saved, (u, rank, rank))
        p.append(saved if saved is not None else _regenerate(seed + position, u, rank, stored, prefix))
    basis = Basis(
        architecture=layers.config.architecture,
        modules=tuple(modules),
        rank=rank,
        u=u,
        groups=groups,
        seed=seed % (1 << 64),
        factorization=SQRT,
        projection=EXPLICIT,
        scheme="peft",
        tying=peft_tying(len(modules), groups),
        a=tuple(a),
        b=tuple(b),
        p=tuple(p),
    )
    if base is not None:
        basis = replace(basis, base_fingerprints=(_check_base(basis, Path(base)),))
    return basis, MicroVector(values.astype(np.float32))


def write_bundle(
    basis: Basis, vector: MicroVector, base: str | PathLike[str], output: str | PathLike[str]
) -> None:
    """Write what `read_tinylora` returned as a bundle: base, basis, manifest, and the vector as a frame.

    Args:
        basis: that was read with `base`, so that it lists its fingerprint.
        vector: of the basis; it becomes `vector.bin`.
        base: GGUF that is deployed.
        output: the bundle.

    Raises:
        ExportError: the output exists, or cannot be written.
        BaseMismatchError: the basis was not read with this base.
    """
    found = _fingerprint(basis, Path(base))
    if found not in basis.base_fingerprints:
        raise BaseMismatchError(f"the basis does not list {base}: read the checkpoint with this base")

    def add(bundle: Path, basis: Basis) -> tuple[Basis, bundle_writer.Sections]:
        with atomic_write(bundle / VECTOR) as file:
            file.write(vector.to_bytes(basis))
        return basis, {}

    imported = {"from": "PEFT TinyLoRA", "vector": VECTOR}
    bundle_writer.write_bundle(
        Path(output), basis, {"imported": imported}, base=Path(base), fingerprint=found, add=add
    )


def write_tinylora(
    basis: Basis,
    vector: MicroVector,
    directory: str | PathLike[str],
    model: str | PathLike[str],
    *,
    untie: bool = False,
) -> None:
    """Write a checkpoint that `PeftModel.from_pretrained` loads with the same function.

    Projections of every kind go in as they are. PEFT has no place for names of axes and their prior.

    Args:
        basis: of the model.
        vector: of the basis.
        directory: to write; files of the same names are replaced.
        model: Hugging Face directory of the model.
        untie: give every layer a copy of its group's values. The function is the same, but training it
            further in PEFT moves the copies apart.

    Raises:
        ExportError: PEFT cannot express the tying, the model is another one, or a file cannot be written.
        UnsupportedModelError: PEFT counts a layer elsewhere.
        VectorError: the vector does not fit the basis.
    """
    layers = Layers(Path(model))
    check_counted(list(basis.modules))
    count = len(basis.modules)
    values = basis.values(vector)
    groups = basis.groups
    if untie:
        values, groups = values[basis.tying], count
    elif not np.array_equal(peft_tying(count, groups), basis.tying):
        raise ExportError(_cannot_tie(basis))
    tensors: dict[str, NDArray[np.float32]] = {}
    for group in range(groups):
        tensors[f"base_model.tinylora_v.{group}"] = values[group]
    for m, module in enumerate(basis.modules):
        a, b = _matrices(basis, m)
        prefix = f"base_model.model.{layers.name(module)}"
        tensors[f"{prefix}.tinylora_A"] = a
        tensors[f"{prefix}.tinylora_B"] = layers.to_hf_rows(module, b)
        tensors[f"{prefix}.tinylora_P"] = basis.projections[m]
    config = {
        "peft_type": "TINYLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "inference_mode": True,
        "r": basis.rank,
        "u": basis.u,
        "weight_tying": 1 - groups / count if groups > 1 else 1.0,
        "projection_seed": basis.seed % (1 << 63),  # of what is saved, and so never used
        "save_projection": True,
        "target_modules": [layers.name(module) for module in basis.modules],
        "tinylora_dropout": 0.0,
        "bias": "none",
    }
    write_checkpoint(Path(directory), config, tensors)


def write_lora(
    basis: Basis, vector: MicroVector, directory: str | PathLike[str], model: str | PathLike[str]
) -> None:
    """Write a plain PEFT LoRA of rank r, (A, B R), for whatever takes one: vLLM, SGLang, TGI, diffusers.

    The factors are exact. (PEFT's own conversion of a TinyLoRA runs a second SVD over each product.)

    Raises:
        ExportError: the model is another one, or a file cannot be written.
        VectorError: the vector does not fit the basis.
    """
    layers = Layers(Path(model))
    r = basis.R(vector)
    tensors: dict[str, NDArray[np.float32]] = {}
    for m, module in enumerate(basis.modules):
        a, b = _matrices(basis, m)
        prefix = f"base_model.model.{layers.name(module)}"
        tensors[f"{prefix}.lora_A.weight"] = a
        tensors[f"{prefix}.lora_B.weight"] = layers.to_hf_rows(module, b @ r[m])
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "inference_mode": True,
        "r": basis.rank,
        "lora_alpha": basis.rank,  # alpha / r is the scale: 1
        "target_modules": [layers.name(module) for module in basis.modules],
        "lora_dropout": 0.0,
        "bias": "none",
    }
    write_checkpoint(Path(directory), config, tensors)


def peft_tying(count: int, groups: int) -> NDArray[np.int32]:
    """Return the group of each of `count` layers as PEFT forms `groups` of them: int32 [count]."""
    numbers: NDArray[np.int32] = np.minimum(np.arange(count) // (count // groups), groups - 1).astype(
        np.int32
    )
    return numbers


def _cannot_tie(basis: Basis) -> str:
    count, groups = len(basis.modules), basis.groups
    size = count // groups
    last = count - size * (groups - 1)
    members = np.bincount(basis.tying, minlength=groups)
    return (
        f"PEFT cannot express the tying of basis {basis.id}: {groups} groups of {members.min()} to "
        f"{members.max()} on {count} modules ({basis.scheme}). Its weight_tying makes {groups - 1} groups of "
        f"{size} neighbours and one of {last}. Write it untied (the same function, a copy of the values for "
        "each layer), as a plain LoRA, or export a basis whose groups divide the modules"
    )


def _matrices(basis: Basis, m: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = np.asarray(basis.a[m], np.float32), np.asarray(basis.b[m], np.float32)
    if a.ndim != 2:
        raise UnsupportedModelError(f"{basis.modules[m]} has experts, which PEFT adapts in no way like this")
    return a, b


def _modules(tensors: dict[str, Any], layers: Layers, directory: Path) -> list[str]:
    """Return the modules that a checkpoint adapts, in canonical order, which is PEFT's."""
    found, others = [], []
    for key in tensors:
        name = layer_of(key, "tinylora_A")
        if name is not None:
            if name not in layers.modules or f"base_model.model.{name}.tinylora_B" not in tensors:
                raise UnsupportedModelError(
                    f"{directory} adapts {name}, which is no linear layer of a decoder block that a basis "
                    "knows"
                )
            found.append(layers.modules[name])
        elif not key.endswith((".tinylora_B", ".tinylora_P")) and not _V.fullmatch(key):
            others.append(key)
    if others:
        raise UnsupportedModelError(
            f"{directory} holds {len(others)} tensors that are no part of a TinyLoRA, such as {others[0]}: a "
            "vector cannot carry what modules_to_save or bias trained besides"
        )
    if not found:
        raise ExportError(f"{directory / WEIGHTS} has no TinyLoRA layers")
    modules = canonical_order(found)
    check_counted(modules)
    return modules


def _regenerate(seed: int, u: int, rank: int, stored: dict[str, Any], prefix: str) -> NDArray[np.float32]:
    """Draw a projection as PEFT does where it did not save it: from torch's generator."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("drawing PEFT's projections again", "torch", "train") from None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.normal(mean=0.0, std=1.0 / rank**0.5, size=(u, rank, rank), generator=generator)
    if stored[f"{prefix}tinylora_A"].dtype == "BF16":  # PEFT casts them to the model's dtype
        drawn = drawn.bfloat16()
    elif stored[f"{prefix}tinylora_A"].dtype == "F16":
        drawn = drawn.half()
    projection: NDArray[np.float32] = drawn.float().numpy()
    return projection


def _check_base(basis: Basis, base: Path) -> str:
    """Return the fingerprint of a base whose weights agree with the factors."""
    weights = GGUFWeights(base)
    check_shapes(weights.file, basis)
    for m, module in enumerate(basis.modules):
        gap = distance(*_matrices(basis, m), weights.matrices(module))
        if not gap <= AGREEMENT:
            raise BaseMismatchError(
                f"{module} in {base} is {gap:.2g} away from the factors of the checkpoint (at most "
                f"{AGREEMENT} is accepted): it is another model"
            )
    return _fingerprint(basis, base)


def _fingerprint(basis: Basis, base: Path) -> str:
    try:
        return fingerprint(open_gguf(base), basis.modules)
    except MalformedGGUFError as error:
        raise BaseMismatchError(f"{base} is not a usable GGUF model: {error}") from None


def _seed(config: dict[str, Any], directory: Path) -> int:
    value = config.get("projection_seed", 42)
    if type(value) is not int:
        raise ExportError(f"{directory / CONFIG} has projection_seed = {value!r}: expected an integer")
    if not -(1 << 63) <= value < (1 << 64) - MODULES:
        raise ExportError(
            f"{directory / CONFIG} has projection_seed = {value}, which torch's generator does not take: "
            "expected an integer of 64 bits"
        )
    return value


def _check_shape(directory: Path, name: str, tensor: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ExportError(
            f"{directory / WEIGHTS} has {name} of shape {tensor.shape}: r and u of {CONFIG} make it {shape}"
        )


def _positive(config: dict[str, Any], key: str, directory: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ExportError(f"{directory / CONFIG} has {key} = {value!r}: expected a positive integer")
    return value
