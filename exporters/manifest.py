"""The manifest: what an export did, for people and for tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._system import __version__
from ..basis import Basis
from ..formats.bundle import BASE_NAME, BASE_STEM, BASIS_NAME
from ..formats.gguf_split import gguf_paths, split_name
from .factors.factorize import Quality
from .settings import Settings

_FORMAT = 1


def describe(
    basis: Basis,
    quality: Quality,
    source: str,
    settings: Settings,
    provenance: dict[str, Any] | None = None,
    **deployed: dict[str, Any],
) -> dict[str, Any]:
    """Return a manifest.

    Args:
        basis: as it was written.
        quality: of the factorization.
        source: `gguf` or `hf`: where the weights came from.
        settings: of the export.
        provenance: the section `source`: where the files came from. None where that is not known.
        deployed: a section for each deployed form: `base` for the GGUF, `onnx` for the graph.
    """
    return {
        "format": _FORMAT,
        "tool": f"tinylora-edge {__version__}",
        "architecture": basis.architecture,
        **({"source": provenance} if provenance is not None else {}),
        **deployed,
        "basis": describe_basis(basis) | {"seed": basis.seed, "factor_dtype": settings.factor_dtype},
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
        "factorization": basis.factorization,
    }
