"""Bundles: where a base, its factors and projections, and the manifest lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from ..basis import Bases, Basis
from ..errors import BaseMismatchError, BasisError
from ..factors import Factors, Shape
from ..jsonio import read_json
from .gguf import MalformedGGUFError, open_gguf, whole_stem
from .onnx_graph import MODEL_NAME, check_config, onnx_fingerprint
from .side_tensors import check_shapes, fingerprint, load_bases

BASE_NAME, BASIS_NAME, MANIFEST_NAME = "base.gguf", "basis.gguf", "manifest.json"
BASE_STEM = "base"
ONNX_NAME = "onnx"


@dataclass(frozen=True)
class Bundle:
    """A base model and the bases of its vectors.

    Attributes:
        base: the GGUF file (the first of a split one), or the ONNX directory where the bundle has no GGUF.
        basis_path: the side tensors.
        onnx: the ONNX directory (`model.onnx` and what belongs to it), or None.
    """

    base: Path
    basis_path: Path
    onnx: Path | None = None

    @property
    def manifest_path(self) -> Path | None:
        """The manifest, which lies beside a `basis.gguf`, or None where there is none."""
        path = self.basis_path.with_name(MANIFEST_NAME)
        return path if self.basis_path.name == BASIS_NAME and path.exists() else None

    @cached_property
    def bases(self) -> Bases:
        """The bases that vectors may be of, read once; CorruptBasisError where the file is damaged."""
        return load_bases(self.basis_path)

    @property
    def factors(self) -> Factors:
        """A and B of every module; errors as for `bases`."""
        return self.bases.factors

    def basis(self, *, numbers: int | None = None, rank: int | Shape | None = None) -> Basis:
        """Return the basis of so many numbers, or of all entries of R (see `Bases.basis`)."""
        return self.bases.basis(numbers=numbers, rank=rank)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest, or {} where there is none; BasisError where it is not JSON."""
        if (path := self.manifest_path) is None:
            return {}
        try:
            content = read_json(path)
        except ValueError as error:
            raise BasisError(f"{path} is not JSON: {error}. Export the bundle again") from None
        return content if isinstance(content, dict) else {}

    def check_base(self) -> str:
        """Return the fingerprint of the base, if the basis lists it.

        Raises:
            BaseMismatchError: the base is no GGUF file, or not one that the factors were exported for; of an
                ONNX graph see `check_onnx`.
        """
        if self.base == self.onnx:
            return self.check_onnx()
        try:
            base = open_gguf(self.base)
            check_shapes(base, self.factors)
            found = fingerprint(base, self.factors.modules)
        except (MalformedGGUFError, BaseMismatchError) as error:
            raise BaseMismatchError(f"{self.base} is not a base for these factors: {error}") from None
        self._check_listed(self.base, found)
        return found

    def check_onnx(self) -> str:
        """Return the fingerprint of the bundle's ONNX graph, if the basis lists it.

        Raises:
            BaseMismatchError: there is no graph, or not one that was exported with these factors, as it was
                exported; or its configuration would have the engine run native code.
        """
        if self.onnx is None:
            raise BaseMismatchError(
                f"the bundle of {self.basis_path} has no {ONNX_NAME}/{MODEL_NAME}: export with --format onnx"
            )
        found = onnx_fingerprint(self.onnx)
        self._check_listed(self.onnx, found)
        check_config(self.onnx)
        return found

    def _check_listed(self, base: Path, found: str) -> None:
        if found in self.bases.fingerprints:
            return
        listed = ", ".join(f"{item[:16]}..." for item in self.bases.fingerprints) or "none"
        mend = "list this one: tinylora-edge export BUNDLE --add-base FILE"
        if base == self.onnx:
            mend = "export again what a tool changed, or an older release made"
        raise BaseMismatchError(
            f"{base} has fingerprint {found[:16]}..., but {self.basis_path} lists {listed}: load the base "
            f"that it was exported for, whole and unchanged, or {mend}"
        )


BundleOrPath: TypeAlias = str | PathLike[str] | Bundle
"""What `load_bundle` takes, and so every function that opens a bundle. A `Bundle` is not read again."""


def load_bundle(path: BundleOrPath) -> Bundle:
    """Return a bundle, its parts located; the factors are read when they are first used, once a `Bundle`.

    Args:
        path: a directory that `export` wrote, the `onnx` directory in it (or a copy of that with
            `basis.gguf` inside), or a `.gguf` with `<stem>.basis.gguf` beside it (or, for
            `base.gguf`, `basis.gguf`). Of a split model it is the first file, and its stem has no
            number. The `model.onnx` of a bundle stands for its directory, and a `Bundle` for itself.

    FileNotFoundError: the path, or one of the parts, is not there.
    """
    if isinstance(path, Bundle):
        return path
    path = Path(path)
    if path.name == MODEL_NAME and path.exists():
        path = path.absolute().parent
    inside = _base_in(path)
    if (path / MODEL_NAME).exists() and not inside.exists():
        home = path if (path / BASIS_NAME).exists() else path.absolute().parent
        bundle = Bundle(path, home / BASIS_NAME, path)
    elif path.is_dir():
        onnx = path / ONNX_NAME if (path / ONNX_NAME / MODEL_NAME).exists() else None
        base = onnx if onnx is not None and not inside.exists() else inside
        bundle = Bundle(base, path / BASIS_NAME, onnx)
    elif path == _base_in(path.parent) and (path.parent / BASIS_NAME).exists():
        bundle = Bundle(path, path.parent / BASIS_NAME)
    else:
        bundle = Bundle(path, path.with_name(f"{whole_stem(path)}.basis.gguf"))
    for part in (path, bundle.base, bundle.basis_path):
        if not part.exists():
            raise FileNotFoundError(
                f"{part} does not exist: expected a bundle directory with {BASE_NAME} (or {ONNX_NAME}/"
                f"{MODEL_NAME}) and {BASIS_NAME}, or a .gguf with <stem>.basis.gguf beside it. Make one "
                "with: tinylora-edge export"
            )
    return bundle


def _base_in(directory: Path) -> Path:
    """Return the path of a bundle's GGUF, which need not exist: one file, or the first of a split one."""
    whole = directory / BASE_NAME
    split = [] if whole.exists() else sorted(directory.glob(f"{BASE_STEM}-00001-of-*.gguf"))
    return split[0] if split else whole
