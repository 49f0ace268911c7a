"""Names of models, and the files that they stand for: a path, a name of the catalog, or `org/name`.

`find` decides what is needed and asks the hub for lists alone; `Selection.fetch` downloads; `resolve` does
both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ...documents import read_json
from ...errors import ExportError, HubError
from ...formats.bundle import BASIS_NAME
from .cache import Download, Hub, Repository
from .catalog import NAME, Catalog, CatalogModel, load_catalog, near, split_repository
from .gguf_names import choose, models_in, of_pattern
from .selection import ResolvedModel, SelectedFiles, Selection

FACTORS_FROM = ("gguf", "weights")

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_BESIDE = re.compile(r"[^/]+\.(?:json|model|txt|jinja)")  # configuration and tokenizer
_BESIDE_BYTES = 100_000_000


def find(
    model: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    quant: str | None = None,
    factors_from: str | None = None,
    revision: str | None = None,
    deployed: bool = True,
    graph: bool = False,
    catalog: Catalog | str | PathLike[str] | None = None,
    hub: Hub | None = None,
) -> Selection:
    """Find out what a model's name stands for.

    Args:
        model: a local path, which wins where it exists; a name of the catalog; or `org/name`, a repository
            on the hub. Both may end in `@revision`.
        base: the GGUF that is deployed, where it is not the one that `model` names: a path, or `org/name`.
        quant: the quantization of the base, such as `q4_k_m`; None for the model's default.
        factors_from: `gguf`: the base itself, so that one download is enough; `weights`: the original
            weights. None for `gguf`, or `weights` where `base` is given or a graph is built.
        revision: branch, tag or commit of the repository; None for the newest.
        deployed: a GGUF is deployed. False for another engine alone.
        graph: a graph is built of the weights: bring their configuration and tokenizer too.
        catalog: of names, or a file that is read on top of the others: see `load_catalog`.
        hub: where from; None for the one that the environment names.

    Raises:
        ExportError: the name is unknown, or the options do not go together.
        HubError: the hub does not have it, or cannot be reached.
        MissingExtraError: the hub is needed, and huggingface_hub is not installed.
    """
    if factors_from is not None and factors_from not in FACTORS_FROM:
        raise ExportError(
            f"factors cannot come from {factors_from!r}: choose one of {', '.join(FACTORS_FROM)}"
        )
    text = str(model)
    # A path that no name can be needs no catalog: a mistake in somebody's own is none in their model.
    plain = catalog is None and _is_local(text) and (not NAME.fullmatch(text) or text.endswith(".gguf"))
    known = {} if plain else catalog if isinstance(catalog, dict) else load_catalog(catalog)
    names = {name.lower(): entry for name, entry in known.items()}
    bare, _, at = text.partition("@")
    entry = names.get(bare.lower())
    if base is not None:
        _check_base(str(base), quant, factors_from)
    if _is_local(text) and not (entry is not None and _is_bundle(Path(text))):
        remote = base is not None and not _is_local(str(base))
        _check_local(text, None if remote else quant, factors_from, revision)
        if not remote:
            return Selection(
                None, shadowed=entry, _model=Path(text), _base=Path(base) if base is not None else None
            )
        part = _Request(known, hub or Hub(), quant, None, deployed, graph).base(str(base))
        return Selection(None, shadowed=entry, parts=(part,), _hub=hub or Hub(), _model=Path(text))
    if entry is None and split_repository(text) is None:
        raise ExportError(_unknown(text, known))
    if entry is None:
        bare, revised = split_repository(text) or (text, None)
        at = revised or ""
    if at and revision is not None and at != revision:
        raise ExportError(f"{text} names revision {at!r}, but --revision {revision!r}: give one of them")
    wanted = _Request(known, hub or Hub(), quant, at or revision, deployed, graph)
    source = factors_from or ("weights" if base is not None or graph else "gguf")
    if entry is not None:
        return wanted.of_catalog(entry, source, base)
    return wanted.of_repository(bare, source, base)


def resolve(
    model: str | PathLike[str], *, progress: Download = lambda name, done, total: None, **options: Any
) -> ResolvedModel:
    """Find a model and bring it onto this machine.

        found = resolve("qwen2.5-7b", quant="q4_k_m")
        export_gguf(found.model, "qwen", base=found.base, provenance=found.provenance)

    Arguments and errors: see `find` and `Selection.fetch`.
    """
    return find(model, **options).fetch(progress)


@dataclass(frozen=True)
class _Request:
    """A request for a model, but for its name."""

    catalog: Catalog
    hub: Hub
    quant: str | None
    revision: str | None
    deployed: bool
    graph: bool

    def of_catalog(self, entry: CatalogModel, source: str, base: str | PathLike[str] | None) -> Selection:
        """Find what an entry of the catalog stands for."""
        from_hub = base is None and (self.deployed or source == "gguf")
        if self.revision is not None and from_hub and source == "weights":
            raise ExportError(
                f"{entry.name} takes files from two repositories, and a revision is of one: pass "
                f"{entry.weights}@REVISION as MODEL, and --base {entry.gguf}@REVISION"
            )
        parts = []
        if source == "weights":
            if entry.weights is None:
                raise ExportError(f"the catalog names no original weights for {entry.name}: {entry.origin}")
            parts.append(self._weights(*self._pinned(entry.weights)))
        if from_hub:
            parts.append(self._gguf_of_entry(entry))
        return self._found(entry.name, entry, parts, base)

    def of_repository(self, name: str, source: str, base: str | PathLike[str] | None) -> Selection:
        """Find what is needed of a repository on the hub."""
        listing = self.hub.repository(name, self.revision)
        has_gguf = bool(models_in(listing.files))
        has_weights = any(file.endswith(".safetensors") for file in listing.files)
        parts = []
        if source == "weights":
            if not has_weights:
                raise HubError(
                    f"{listing} has no safetensors: pass the repository of the original weights as MODEL, "
                    f"and this one as --base {name}"
                )
            parts.append(self._weights(name, self.revision, listing))
        if base is None and (self.deployed or source == "gguf"):
            if has_gguf:
                parts.append(self._gguf(name, self.revision, listing))
            elif (entry := self._entry_of_weights(name)) is not None:
                parts.append(self._gguf_of_entry(entry, pinned=False))
            else:
                raise HubError(
                    f"{listing} has no GGUF: name the one that is deployed with --base, a file or the "
                    "repository of one (org/name)"
                )
        return self._found(name.rpartition("/")[2], None, parts, base)

    def base(self, text: str) -> SelectedFiles:
        """Find the GGUF of a repository that is named as the base."""
        name, revision = split_repository(text) or (text, None)
        return self._gguf(name, revision, self.hub.repository(name, revision))

    def _found(
        self,
        name: str,
        entry: CatalogModel | None,
        parts: list[SelectedFiles],
        base: str | PathLike[str] | None,
    ) -> Selection:
        local = None
        if base is not None:
            if _is_local(str(base)):
                local = Path(base)
            else:
                parts.append(self.base(str(base)))
        # The base first: it is what the hub may not have, and what decides whether there is room.
        parts.sort(key=lambda part: part.role)
        return Selection(
            name, entry, tuple(parts), _hub=self.hub, _base=local, _deployed=self.deployed or base is not None
        )

    def _pinned(self, text: str, *, pinned: bool = True) -> tuple[str, str | None]:
        """Split a reference of the catalog, and put the revision that was asked for in."""
        name, revision = split_repository(text) or (text, None)
        return name, (self.revision if pinned else None) or revision

    def _gguf_of_entry(self, entry: CatalogModel, *, pinned: bool = True) -> SelectedFiles:
        name, revision = self._pinned(entry.gguf, pinned=pinned)
        return self._gguf(name, revision, self.hub.repository(name, revision), entry)

    def _gguf(
        self, name: str, revision: str | None, listing: Repository, entry: CatalogModel | None = None
    ) -> SelectedFiles:
        models = models_in(listing.files)
        if entry is not None:
            models = of_pattern(models, entry.files) or models
        chosen = choose(models, self.quant, str(listing), entry.default if entry is not None else None)
        return SelectedFiles("base", listing, chosen.files, revision, chosen.quant)

    def _weights(self, name: str, revision: str | None, listing: Repository | None = None) -> SelectedFiles:
        listing = listing or self.hub.repository(name, revision)
        names = set(listing.files)
        if _INDEX in names:
            shards = self._shards(listing)
        elif _SINGLE in names:
            shards = [_SINGLE]
        else:
            raise HubError(
                f"{listing} has neither {_SINGLE} nor {_INDEX}: only safetensors are read. Export from the "
                "GGUF instead (--factors-from gguf)"
            )
        beside = [
            file
            for file in sorted(names)
            if file == "config.json"
            or file == _INDEX
            or (
                self.graph
                and _BESIDE.fullmatch(file)
                and not file.endswith(".index.json")
                and listing.files[file].size <= _BESIDE_BYTES
            )
        ]
        return SelectedFiles("weights", listing, (*beside, *shards), revision)

    def _shards(self, listing: Repository) -> list[str]:
        """The shards that an index names; the index is small and is read now."""
        path = self.hub.fetch(listing, [_INDEX]) / _INDEX
        try:
            shards = sorted(set(read_json(path)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(f"{_INDEX} of {listing} is not a safetensors index: {error!r}") from None
        missing = [shard for shard in shards if shard not in listing.files]
        if missing or not shards:
            raise HubError(
                f"{listing} lacks {len(missing)} of the {len(shards)} shards that its index names: "
                f"{', '.join(map(str, missing[:3]))}"
            )
        return shards

    def _entry_of_weights(self, name: str) -> CatalogModel | None:
        for entry in self.catalog.values():
            if entry.weights is not None and self._pinned(entry.weights)[0].lower() == name.lower():
                return entry
        return None


def _check_base(base: str, quant: str | None, factors_from: str | None) -> None:
    """Refuse a base that is nowhere, and options that make no sense with one."""
    if factors_from == "gguf":
        raise ExportError(
            f"the factors are to come from the deployed GGUF, so {base} alone is needed: pass it as MODEL"
        )
    if _is_local(base):
        if quant is not None:
            raise ExportError(f"--quant chooses a file on the hub, and {base} is a local one")
    elif split_repository(base) is None:
        raise ExportError(f"{base} does not exist: --base takes a GGUF file, or org/name on the hub")


def _check_local(text: str, quant: str | None, factors_from: str | None, revision: str | None) -> None:
    """Refuse options that make no sense with a local path."""
    for option, value in (("--quant", quant), ("--revision", revision)):
        if value is not None:
            raise ExportError(f"{option} {value} is of a model on the hub, but {text} is a local path")
    if factors_from == "weights" and not Path(text).is_dir():
        raise ExportError(
            f"{text} is a GGUF file: pass the directory of the original weights as MODEL, and this file with "
            "--base"
        )
    if factors_from == "gguf" and Path(text).is_dir():
        raise ExportError(f"{text} is a directory of weights: pass the GGUF file as MODEL")


def _is_local(text: str) -> bool:
    """Whether a name is a path: it exists, or nothing else looks like it."""
    try:
        if Path(text).exists():
            return True
    except OSError:  # too long for a name of a file
        return False
    return (
        text.startswith(("/", ".", "~"))
        or text.lower().endswith(".gguf")
        or "\\" in text
        or text.count("/") > 1
        or Path(text).is_absolute()
    )


def _is_bundle(path: Path) -> bool:
    return (path / BASIS_NAME).exists()


def _unknown(text: str, catalog: Catalog) -> str:
    found = near(text.partition("@")[0], catalog)
    return (
        f"{text!r} is neither a local path nor a model of the catalog"
        + (f"; near it: {found}" if found else "")
        + ". List them with tinylora-edge models; any org/name on the hub works as well"
    )


def cached_quants(model: CatalogModel, hub: Hub) -> list[str]:
    """Return the quantizations of a model that are whole in the cache. Nobody is asked.

    Args:
        model: of the catalog.
        hub: whose cache is looked into.
    """
    name, revision = split_repository(model.gguf) or (model.gguf, None)
    listing = hub.cached(name, revision)
    if listing is None:
        return []
    return [found.quant for found in of_pattern(models_in(listing.files), model.files) if not found.missing]
