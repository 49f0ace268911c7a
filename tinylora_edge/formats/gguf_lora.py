"""Stock GGUF LoRAs, as llama.cpp's convert_lora_to_gguf writes them, looked at before an engine takes one.

A file has for each adapted tensor of the base `<tensor>.lora_a`, [r, in], and `<tensor>.lora_b`, [out, r],
with a leading axis where the tensor holds experts. llama.cpp refuses what does not fit with a line on stderr
that does not name the file; here the error says what does not fit, and with what.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ..errors import BaseMismatchError
from .gguf import GGUFFile, MalformedGGUFError, Tensor, open_gguf

_SIDES = (".lora_a", ".lora_b")
_TURNED = "token_embd.weight"  # of which llama.cpp stores the sides the other way round


def check_lora(path: str | PathLike[str], base: str | PathLike[str]) -> None:
    """Check that a stock LoRA is for a base model.

    Args:
        path: the LoRA.
        base: the GGUF of the model, or the first file of a split one.

    Raises:
        BaseMismatchError: it is of another model, or no GGUF LoRA.
        OSError: a file cannot be read.
    """
    try:
        lora, model = GGUFFile(path), open_gguf(base)
        general, kind = lora.value("general.type", str, "no type"), lora.value("adapter.type", str, "no type")
    except MalformedGGUFError as error:
        raise BaseMismatchError(f"{path} is no usable GGUF LoRA: {error}") from None
    if (general, kind) != ("adapter", "lora"):
        raise BaseMismatchError(
            f"{path} is no LoRA: its general.type is {general!r} and its adapter.type {kind!r}, expected "
            "'adapter' and 'lora'"
        )
    if lora.architecture != model.architecture:
        raise BaseMismatchError(
            f"{path} is a LoRA of another model: its architecture is {lora.architecture!r}, and that of "
            f"{Path(base).name} is {model.architecture!r}"
        )
    if not lora.tensors:
        raise BaseMismatchError(f"{path} is a LoRA that adapts nothing: it has no tensors")
    for name in lora.tensors:
        adapted = _adapted(name)
        if adapted is None or any(adapted + side not in lora.tensors for side in _SIDES):
            raise BaseMismatchError(
                f"{path} is no usable LoRA: {name} is not one of a pair that ends in {' and '.join(_SIDES)}"
            )
        if adapted not in model.tensors:
            raise BaseMismatchError(
                f"{path} is a LoRA of another model: it adapts {adapted}, and {Path(base).name} has "
                "no such tensor"
            )
        if name.endswith(_SIDES[0]) and adapted != _TURNED:
            _check_shapes(path, base, model.tensors[adapted], *(lora.tensors[adapted + s] for s in _SIDES))


def _adapted(name: str) -> str | None:
    """Return the tensor that a side of a LoRA adapts, or None where the name is another's."""
    return next((name.removesuffix(side) for side in _SIDES if name.endswith(side)), None)


def _check_shapes(
    path: str | PathLike[str], base: str | PathLike[str], weight: Tensor, a: Tensor, b: Tensor
) -> None:
    fits = len(a.shape) == len(b.shape) == len(weight.shape) >= 2
    fits = fits and a.shape[-2] == b.shape[-1] and a.shape[:-2] == b.shape[:-2] == weight.shape[:-2]
    if not (fits and (b.shape[-2], a.shape[-1]) == weight.shape[-2:]):
        raise BaseMismatchError(
            f"{path} is a LoRA of another model: its sides for {weight.name} have the shapes "
            f"{_shape(a)} and {_shape(b)}, and the weight in {Path(base).name} has {_shape(weight)}"
        )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
