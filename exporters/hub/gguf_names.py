"""Names of GGUF files, and what they say: quantization, and parts of a split model. No file is read.

Names follow the convention of llama.cpp's users: `<model>-<QUANT>.gguf`, or with `.` before the quantization,
in any case; parts end in `-00001-of-00008` (llama-gguf-split). Convention:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "GGUF Naming Convention".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import ExportError

PREFERRED = ("q4_k_m", "q4_0", "mxfp4", "q8_0", "f16", "bf16")
"""Tried in this order where no quantization is asked for."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(
    r"(?:^|[-._])((?:ud[-_])?(?:i?q\d(?:_[0-9a-z]+)*|tq\d_\d|mxfp4(?:_moe)?|nvfp4|bf16|fp?16|fp?32))$",
    re.IGNORECASE,
)
# What lies beside models and is none: vision towers, importance matrices, adapters.
_OTHER = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|lora)(?:[-._]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class GGUFModel:
    """A model among the files of a repository.

    Attributes:
        stem: its name without parts and `.gguf`, folders included.
        quant: its quantization in lower case (`q4_k_m`), or the stem where the name has none.
        files: its parts in order; one where it is not split.
        missing: parts that the names count, but that are not there.
    """

    stem: str
    quant: str
    files: tuple[str, ...]
    missing: tuple[str, ...] = ()


def normal(quant: str) -> str:
    """Return the one name of a quantization: lower case, `f16` for `fp16`."""
    quant = quant.lower()
    return quant.replace("fp", "f") if quant in ("fp16", "fp32") else quant


def models_in(names: Iterable[str]) -> list[GGUFModel]:
    """Return the models among file names (POSIX paths), sorted by name."""
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        if not name.lower().endswith(".gguf"):
            continue
        stem = name[: -len(".gguf")]
        number, total = 1, 1
        if (match := _PART.search(stem)) is not None:
            stem, number, total = stem[: match.start()], int(match[1]), int(match[2])
        if not _OTHER.search(stem):
            parts.setdefault((stem, total), {})[number] = name
    return [_model(stem, total, found) for (stem, total), found in sorted(parts.items())]


def of_pattern(models: list[GGUFModel], pattern: str) -> list[GGUFModel]:
    """Return the models whose names are those of a pattern such as `Qwen3-8B-{quant}.gguf`, in any case."""
    before, _, after = pattern.removesuffix(".gguf").partition("{quant}")
    wanted = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.IGNORECASE)
    result = []
    for model in models:
        if (match := wanted.fullmatch(model.stem)) is not None:
            result.append(GGUFModel(model.stem, normal(match[1]), model.files, model.missing))
    return result


def choose(models: list[GGUFModel], quant: str | None, where: str, default: str | None = None) -> GGUFModel:
    """Choose a model by its quantization.

    Args:
        models: to choose from.
        quant: asked for: a quantization, or the name of a file; None for `default`, or the best known.
        where: the models are, in words.
        default: tried first where nothing is asked for.

    Raises:
        ExportError: there is none, or several, or parts of it are missing.
    """
    if not models:
        raise ExportError(f"{where} has no GGUF model")
    if quant is not None:
        asked = quant.removesuffix(".gguf")
        found = [m for m in models if m.quant == normal(asked)]
        found = found or [m for m in models if asked.lower() in (m.stem.lower(), *_stems(m))]
    elif len(models) == 1:
        found = models
    else:
        order = [normal(default)] if default else list(PREFERRED)
        found = next((same for q in order if (same := [m for m in models if m.quant == q])), [])
    if not found:
        wanted = f"no quantization {quant or default!r}" if quant or default else "no usual quantization"
        raise ExportError(f"{where} has {wanted}: choose one with --quant: {_listed(models)}")
    if len(found) > 1:
        names = ", ".join(model.stem for model in found)
        raise ExportError(f"{where} has several files for {found[0].quant}: name one with --quant: {names}")
    (model,) = found
    if model.missing:
        raise ExportError(
            f"{where} has {len(model.files)} of the {len(model.files) + len(model.missing)} parts of "
            f"{model.stem}: {model.missing[0]} is missing"
        )
    return model


def _model(stem: str, total: int, found: dict[int, str]) -> GGUFModel:
    match = _QUANT.search(stem)
    base = stem.rpartition("/")[2]
    quant = normal(match[1].replace("ud_", "ud-")) if match is not None else base.lower()
    expected = range(1, total + 1)
    missing = tuple(f"{base}-{n:05}-of-{total:05}.gguf" for n in expected if n not in found)
    return GGUFModel(stem, quant, tuple(found[n] for n in sorted(found)), missing)


def _stems(model: GGUFModel) -> list[str]:
    """The ways in which a file may be named: without its folder, and by a part."""
    names = (model.stem, *(file[: -len(".gguf")] for file in model.files))
    return [form.lower() for name in names for form in (name, name.rpartition("/")[2])]


def _listed(models: list[GGUFModel]) -> str:
    return ", ".join(sorted({model.quant for model in models}))
