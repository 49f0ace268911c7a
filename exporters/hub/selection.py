"""Selections: which files of which repositories a name stands for, and how they get onto this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cache import Download, Hub, Repository
from .catalog import CatalogModel


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
        model: what the factors are taken from: a GGUF file (of a split one, the first part), or a Hugging
            Face directory. The first argument of an export.
        base: the GGUF that is deployed, where it is another file. The argument `base` of an export.
        provenance: for the manifest: repositories, commits, files with sizes and SHA-256; None for paths.
    """

    model: Path
    base: Path | None = None
    provenance: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SelectedFiles:
    """The files of one repository that are needed.

    Attributes:
        role: `base` or `weights`.
        repository: as the hub lists it.
        files: the names; for a base, its parts in order.
        revision: what was asked for, or None.
        quant: of a base.
    """

    role: str
    repository: Repository
    files: tuple[str, ...] = field(repr=False)
    revision: str | None = None
    quant: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.repository.files[name].size for name in self.files)


@dataclass(frozen=True)
class Selection:
    """The files that a model's name stands for. Nothing large was downloaded yet.

    Attributes:
        name: a name for what is made of it: the catalog's, or the repository's without its organization;
            None for a path.
        model: from the catalog, or None.
        parts: what has to be on this machine.
        shadowed: a model of the catalog that a local path of the same name hides.
    """

    name: str | None
    model: CatalogModel | None = None
    parts: tuple[SelectedFiles, ...] = ()
    shadowed: CatalogModel | None = None
    _hub: Hub | None = field(default=None, repr=False)
    _model: Path | None = field(default=None, repr=False)
    _base: Path | None = field(default=None, repr=False)
    _deployed: bool = field(default=True, repr=False)

    def __repr__(self) -> str:
        parts = ", ".join(f"{part.role} of {part.repository}" for part in self.parts)
        return f"<Selection {self.name or self._model}: {parts or 'local files'}>"

    @property
    def bytes(self) -> int:
        """Bytes of all files that are needed."""
        return sum(part.bytes for part in self.parts)

    @property
    def missing(self) -> int:
        """Bytes of those that are not in the cache."""
        return sum(
            part.repository.files[name].size
            for part in self.parts
            for name in part.files
            if self._hub is not None and not self._hub.is_cached(part.repository, name)
        )

    def fetch(self, progress: Download = lambda name, done, total: None) -> ResolvedModel:
        """Download what is missing.

        Args:
            progress: called as bytes arrive, with a file's name, the bytes that are there, and all bytes.

        Raises:
            HubError: there is no room for all of it, access is refused, the network fails, or a file is not
                what the hub said.
        """
        paths: dict[str, Path] = {"base": self._base} if self._base is not None else {}
        sections: dict[str, Any] = {}
        before, total = 0, self.bytes
        if self._hub is not None:
            self._hub.check_space((part.repository, part.files) for part in self.parts)
        for part in self.parts:
            assert self._hub is not None

            def step(name: str, done: int, _: int, before: int = before) -> None:
                progress(name, before + done, total)

            snapshot = self._hub.fetch(part.repository, part.files, step, revision=part.revision)
            before += part.bytes
            paths[part.role] = snapshot / part.files[0] if part.role == "base" else snapshot
            sections[part.role] = self._section(part)
        model = self._model or paths.get("weights") or paths["base"]
        base = paths.get("base") if self._deployed else None
        return ResolvedModel(model, base if base != model else None, self._provenance(sections))

    def _section(self, part: SelectedFiles) -> dict[str, Any]:
        assert self._hub is not None
        return {
            "repository": part.repository.name,
            "revision": part.repository.commit,
            "files": [
                {
                    "name": name,
                    "bytes": part.repository.files[name].size,
                    "sha256": self._hub.sha256(part.repository, name),
                }
                for name in part.files
            ],
        }

    def _provenance(self, sections: dict[str, Any]) -> dict[str, Any] | None:
        if not sections or self._hub is None:
            return None
        catalog = {"name": self.model.name, "license": self.model.license} if self.model is not None else {}
        return {**catalog, "hub": self._hub.endpoint, **sections}
