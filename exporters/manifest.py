"""The manifest: what an export did, for people and for tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..basis import Basis
from ..formats.bundle import BASE_NAME, BASE_STEM, BASIS_NAME
from ..formats.gguf import gguf_paths, split_name
from ..system import __version__
from .factors.basis import Quality
from .settings import ExportSettings

_FORMAT = 1
_SECTIONS = ("source", "base", "onnx", "basis", "factors", "imported")


def describe(basis: Basis, sections: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return a manifest.

    Args:
        basis: as it is written.
        sections: those that the manifest has, by name, in any order: `source` (where the files came from),
            `base` (the GGUF), `onnx` (the graph), `basis` (what is added to what any basis says), `factors`
            and `imported` (where the basis came from). One that is None is left out.
    """
    found = dict(sections) | {"basis": describe_basis(basis) | (sections.get("basis") or {})}
    return {
        "format": _FORMAT,
        "tool": f"tinylora-edge {__version__}",
        "architecture": basis.architecture,
        **{name: found[name] for name in _SECTIONS if found.get(name) is not None},
    }


def describe_export(
    quality: Quality, source: str, settings: ExportSettings, provenance: dict[str, Any] | None
) -> dict[str, dict[str, Any] | None]:
    """Return the sections of a manifest about the factorization of weights.

    Args:
        quality: of the factorization.
        source: `gguf` or `hf`: where the weights came from.
        settings: of the export.
        provenance: where the files came from; None where that is not known.
    """
    return {
        "source": provenance,
        "basis": {"seed": settings.seed, "factor_dtype": settings.factor_dtype},
        "factors": {
            "from": source,
            "worst_residual": quality.residual,
            "worst_residual_module": quality.residual_module,
            "unconverged": quality.unconverged,
            "passes": quality.passes,
            "agreement": quality.agreement,
        },
    }


def describe_gguf(base: Path, fingerprint: str) -> dict[str, Any]:
    """Return the section of a manifest about the GGUF base."""
    files = gguf_paths(base)
    return {
        "file": BASE_NAME if len(files) == 1 else split_name(BASE_STEM, 1, len(files)),
        "name": base.name,
        "bytes": sum(file.stat().st_size for file in files),
        "fingerprint": fingerprint,
    }


def describe_basis(basis: Basis) -> dict[str, Any]:
    """What a manifest says of any basis, wherever it came from."""
    return {
        "file": BASIS_NAME,
        "digest": basis.digest,
        "modules": len(basis.modules),
        "rank": basis.rank,
        "u": basis.u,
        "groups": basis.groups,
        "tying": basis.scheme,
        "projection": basis.projection,
        "axes": list(basis.axes),
        "factorization": basis.factorization,
    }
