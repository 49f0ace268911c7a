"""Bundles: where a base, its basis and the manifest lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from ._basis import Basis
from ._gguf import GGUFFile, MalformedGGUFError
from ._side_tensors import fingerprint, load_basis
from .errors import BaseMismatchError, BasisError

BASE_NAME, BASIS_NAME, MANIFEST_NAME = "base.gguf", "basis.gguf", "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A base model and the basis that adapts it."""

    base: Path
    basis_path: Path
    manifest_path: Path | None = None

    @classmethod
    def find(cls, path: str | PathLike[str]) -> Bundle:
        """Locate the parts of a bundle.

        Args:
            path: a directory that `export` wrote, or a `.gguf` with `<stem>.basis.gguf` beside it
                (or, for `base.gguf`, `basis.gguf`).

        Raises:
            FileNotFoundError: the path, or one of the parts, is not there.
        """
        path = Path(path)
        if path.is_dir():
            bundle = cls(path / BASE_NAME, path / BASIS_NAME, path / MANIFEST_NAME)
        elif path.name == BASE_NAME and (path.parent / BASIS_NAME).exists():
            bundle = cls(path, path.parent / BASIS_NAME, path.parent / MANIFEST_NAME)
        else:
            bundle = cls(path, path.with_name(f"{path.stem}.basis.gguf"))
        for part in (path, bundle.base, bundle.basis_path):
            if not part.exists():
                raise FileNotFoundError(
                    f"{part} does not exist: expected a bundle directory with {BASE_NAME} and {BASIS_NAME}, "
                    "or a .gguf with <stem>.basis.gguf beside it. Make one with: tinylora-edge export"
                )
        return bundle

    @cached_property
    def basis(self) -> Basis:
        """The basis, read once.

        Raises:
            CorruptBasisError: the file is damaged.
        """
        return load_basis(self.basis_path)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest, or {} where there is none.

        Raises:
            BasisError: it is not JSON.
        """
        if self.manifest_path is None or not self.manifest_path.exists():
            return {}
        try:
            content = json.loads(self.manifest_path.read_text("utf-8"))
        except ValueError as error:
            raise BasisError(f"{self.manifest_path} is not JSON: {error}. Export the bundle again") from None
        return content if isinstance(content, dict) else {}

    def check_base(self) -> str:
        """Return the fingerprint of the base, if the basis lists it.

        Raises:
            BaseMismatchError: the base is not a GGUF file, or not one that the basis was exported for.
        """
        try:
            base = GGUFFile(self.base)
        except MalformedGGUFError as error:
            raise BaseMismatchError(f"{self.base} is not a usable GGUF model: {error}") from None
        if base.architecture != self.basis.architecture:
            raise BaseMismatchError(
                f"{self.base} has architecture {base.architecture!r}, but the basis {self.basis_path} is for "
                f"{self.basis.architecture!r}: load the base that it was exported for"
            )
        try:
            found = fingerprint(base, self.basis.modules)
        except BaseMismatchError as error:
            raise BaseMismatchError(f"{self.base}: {error}") from None
        if found not in self.basis.base_fingerprints:
            listed = ", ".join(f"{item[:16]}..." for item in self.basis.base_fingerprints) or "none"
            raise BaseMismatchError(
                f"{self.base} has fingerprint {found[:16]}..., but {self.basis_path} lists {listed}: "
                "load the base that it was exported for, or list this one with: "
                "tinylora-edge export BUNDLE --add-base FILE"
            )
        return found
