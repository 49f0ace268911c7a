"""Names of models: a path, a short name of the catalog, or `org/name` on the Hugging Face hub.

`find` says which files of which repositories a name stands for, and asks the hub for lists alone;
`Selection.fetch` brings them; `resolve` does both. huggingface_hub does the rest: names, tokens, proxies, its
cache, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, what was cut off, its progress bar. Where the hub cannot be reached,
its cache is used.

The catalog is data alone: `models.toml`, and a user's own file on top of it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ..documents import read_json, read_toml
from ..errors import ExportError, HubError, MissingExtraError
from ..formats.bundle import BASIS_NAME

SHIPPED = Path(__file__).with_name("models.toml")
PREFERRED = ("q4_k_m", "q4_0", "mxfp4", "q8_0", "f16", "bf16")
"""Quantizations, tried in this order where none is asked for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^\s@:]+))?")
_KINDS = {"parameters": int, "license": str, "gated": bool, "weights": str, "gguf": str, "files": str}
_KINDS |= {"quants": dict, "default": str}  # field of the catalog -> its type
# Names of GGUF files: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "GGUF Naming Convention".
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(
    r"(?:^|[-._])((?:ud[-_])?(?:i?q\d(?:_[0-9a-z]+)*|tq\d_\d|mxfp4(?:_moe)?|nvfp4|bf16|fp?16|fp?32))$", re.I
)
_NO_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|lora)(?:[-._]|$)", re.I)  # what lies beside models
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_BESIDE = re.compile(r"[^/]+\.(?:json|model|txt|jinja)")  # configuration and tokenizer; never code


@dataclass(frozen=True)
class CatalogModel:
    """An entry of the catalog.

    Attributes:
        name: what a user types.
        gguf: repository of the base, with `@revision` where one is pinned.
        files: pattern of its file names: `Qwen3-8B-{quant}.gguf`, in any case; of a split model, the name
            without `-00001-of-00002`.
        quants: quantization -> bytes, approximately. Others may be there.
        default: the quantization where none is asked for.
        weights: repository of the original weights, or None.
        parameters: how many, or None.
        license: the hub's identifier, or None.
        gated: whether the weights' licence has to be accepted on the hub first.
        origin: the file that it is from.
    """

    name: str
    gguf: str
    files: str
    quants: dict[str, int]
    default: str
    weights: str | None
    parameters: int | None
    license: str | None
    gated: bool
    origin: Path


Catalog = dict[str, CatalogModel]
"""Models by name."""


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
class Listing:
    """The files of a repository at one commit.

    Attributes:
        name: `org/name`.
        revision: that was asked for.
        commit: 40 hexadecimal digits.
        sizes: file -> bytes.
        hashes: file -> SHA-256, of those that the hub has one of.
        offline: why the hub cannot be reached, and these are the files in the cache; "" where it was, or
            where HF_HUB_OFFLINE says that it is not to be asked.
    """

    name: str
    revision: str
    commit: str
    sizes: dict[str, int] = field(repr=False)
    hashes: dict[str, str] = field(repr=False)
    offline: str = ""

    def __str__(self) -> str:
        return f"{'the cache of ' if self.offline else ''}{self.name}@{self.commit[:12]}"


@dataclass(frozen=True)
class SelectedFiles:
    """The files of one repository that are needed: its GGUF (role `base`), or its `weights`."""

    role: str
    repository: Listing
    files: tuple[str, ...] = field(repr=False)
    quant: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.repository.sizes[name] for name in self.files)

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of its files that are not in the cache."""
        load = _client().try_to_load_from_cache
        here, commit = self.repository.name, self.repository.commit
        return tuple(name for name in self.files if not isinstance(load(here, name, revision=commit), str))

    def fetch(self) -> tuple[Path, dict[str, Any]]:
        """Download what is missing and check it; return the folder, and what a manifest says of it."""
        here, missing, facts = self.repository, self.missing, []
        for name in self.files:
            options = {"revision": here.revision, "local_files_only": bool(here.offline)}
            try:
                path = Path(_client().hf_hub_download(here.name, name, **options))
            except Exception as error:
                raise _explained(error, here.name, here.revision) from error
            folder = path.parents[name.count("/")]
            if folder.name != here.commit:
                raise HubError(f"{here.name} was changed meanwhile, to {folder.name}: run the command again")
            # The cache calls what is in Git LFS by its hash, which is as good as the hub's word.
            found = "" if name in missing else path.resolve().name
            if not re.fullmatch(r"[0-9a-f]{64}", found):
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            size, stated = here.sizes[name], here.hashes.get(name)
            if (stated or found, size) != (found, path.stat().st_size):
                path.resolve().unlink()
                path.unlink(missing_ok=True)
                raise HubError(
                    f"{path} has SHA-256 {found}, but {here} states {stated} and {size:,} bytes. It was "
                    "removed; run the command again"
                )
            facts.append({"name": name, "bytes": size, "sha256": found})
        return folder, {"repository": here.name, "revision": here.commit, "files": facts}


@dataclass(frozen=True)
class Selection:
    """The files that a model's name stands for. Nothing large was downloaded yet.

    Attributes:
        name: a name for what is made of it: the catalog's, or the repository's without its organization;
            None for a path.
        model: from the catalog, or None.
        parts: what has to be on this machine.
        path, base: of a model, and of a deployed GGUF, that are here.
        deployed: a GGUF is deployed.
    """

    name: str | None
    model: CatalogModel | None = None
    parts: tuple[SelectedFiles, ...] = ()
    path: Path | None = None
    base: Path | None = None
    deployed: bool = True

    def fetch(self) -> ResolvedModel:
        """Download what is missing.

        Raises:
            HubError: access is refused, the network or the disk fails, or a file is not what the hub said.
        """
        paths = {} if self.base is None else {"base": self.base}
        sections: dict[str, Any] = {}
        for part in self.parts:
            folder, sections[part.role] = part.fetch()
            paths[part.role] = folder / part.files[0] if part.role == "base" else folder
        model = self.path or paths.get("weights") or paths["base"]
        base = paths.get("base") if self.deployed else None
        if not sections:
            return ResolvedModel(model, base)
        entry = {"name": self.model.name, "license": self.model.license} if self.model is not None else {}
        where = {"hub": _client().constants.ENDPOINT}
        return ResolvedModel(model, None if base == model else base, {**entry, **where, **sections})


def find(
    model: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    quant: str | None = None,
    factors_from: str | None = None,
    deployed: bool = True,
    graph: bool = False,
    catalog: Catalog | None = None,
) -> Selection:
    """Find out what a model's name stands for.

    Args:
        model: a local path, which wins where it exists; a name of the catalog; or `org/name`, a repository
            on the hub. Both may end in `@revision`: a branch, a tag or a commit of the repository.
        base: the GGUF that is deployed, where it is not the one that `model` names: a path, or `org/name`.
        quant: the quantization of the base, such as `q4_k_m`; None for the model's default.
        factors_from: `gguf`: the base itself, so that one download is enough; `weights`: the original
            weights. None for `gguf`, or `weights` where `base` is given or a graph is built.
        deployed: a GGUF is deployed. False for another engine alone.
        graph: a graph is built of the weights: bring their configuration and tokenizer too.
        catalog: of names; None for `load_catalog()`.

    Raises:
        ExportError: the name is unknown, or the options do not go together.
        HubError: the hub does not have it, or cannot be reached.
        MissingExtraError: the hub is needed, and huggingface_hub is not installed.
    """
    text = str(model)
    if factors_from not in (None, "gguf", "weights"):
        raise ExportError(f"factors cannot come from {factors_from!r}: choose one of gguf, weights")
    if base is not None and factors_from == "gguf":
        raise ExportError(
            f"the factors are to come from the deployed GGUF, so {base} alone is needed: pass it as MODEL"
        )
    if base is not None and not _is_local(str(base)) and not _REPOSITORY.fullmatch(str(base)):
        raise ExportError(f"{base} does not exist: --base takes a GGUF file, or org/name on the hub")
    local = base is not None and _is_local(str(base))
    if quant is not None and (local or (base is None and _is_local(text) and not _is_bundle(text))):
        raise ExportError(f"--quant {quant} chooses a file on the hub, and {base or text} is a local path")
    parts = [] if base is None or local else [_gguf(str(base), quant)]
    here = Path(base) if base is not None and local else None
    source = factors_from or ("weights" if base is not None or graph else "gguf")
    needs_gguf = base is None and (deployed or source == "gguf")
    # A path that no name can be needs no catalog: a mistake in somebody's own is none in their model.
    plain = catalog is None and _is_local(text) and (not _NAME.fullmatch(text) or text.endswith(".gguf"))
    known = {} if plain else load_catalog() if catalog is None else catalog
    bare, _, revision = text.partition("@")
    entry = {name.lower(): each for name, each in known.items()}.get(bare.lower())
    if _is_local(text) and not (entry is not None and _is_bundle(text)):
        if factors_from == "weights" and not Path(text).is_dir():
            raise ExportError(f"{text} is a GGUF file: pass the original weights as MODEL, and it as --base")
        return Selection(None, parts=tuple(parts), path=Path(text), base=here)
    if entry is not None:
        name = entry.name
        if source == "weights" and entry.weights is None:
            raise ExportError(f"the catalog names no original weights for {name}: {entry.origin}")
        if source == "weights" and needs_gguf and revision:
            raise ExportError(
                f"{name} takes files from two repositories, and a revision is of one: pass "
                f"{entry.weights}@REVISION as MODEL, and --base {entry.gguf}@REVISION"
            )
        if needs_gguf:
            parts.append(_gguf(_at(entry.gguf, revision), quant, entry))
        if source == "weights":
            assert entry.weights is not None
            parts.append(_weights(_list(_at(entry.weights, revision)), graph=graph))
    elif _REPOSITORY.fullmatch(text):
        name, listing = bare.rpartition("/")[2], _list(text)
        if needs_gguf and not models_in(listing.sizes):
            raise HubError(
                f"{listing} has no GGUF: name the one that is deployed with --base, FILE or org/name"
            )
        if needs_gguf:
            parts.append(_gguf(listing, quant))
        if source == "weights":
            parts.append(_weights(listing, graph=graph))
    else:
        near = difflib.get_close_matches(bare.lower(), known, n=3)
        raise ExportError(
            f"{text!r} is neither a local path nor a model of the catalog"
            + (f"; near it: {', '.join(near)}" if near else "")
            + ". List them with tinylora-edge models; any org/name on the hub works as well"
        )
    return Selection(name, entry, tuple(parts), base=here, deployed=deployed or base is not None)


def resolve(model: str | PathLike[str], **options: Any) -> ResolvedModel:
    """Find a model and bring it onto this machine. Arguments and errors: see `find` and `Selection.fetch`.

    found = resolve("qwen2.5-7b", quant="q4_k_m")
    export_gguf(found.model, "qwen", base=found.base, provenance=found.provenance)
    """
    return find(model, **options).fetch()


def cached_quants(model: CatalogModel) -> list[str]:
    """Return the quantizations of a model that are whole in the client's cache. Nobody is asked."""
    name, _, revision = model.gguf.partition("@")
    try:
        listing = _cached(name, revision or "main", "it was not asked")
    except (HubError, MissingExtraError):
        return []
    return [each.quant for each in _of_pattern(models_in(listing.sizes), model.files) if not each.missing]


# The catalog.


def user_file() -> Path:
    """Return where a user's own models are: `tinylora-edge/models.toml` in the folder for configuration.

    Raises:
        ExportError: this user has no home.
    """
    variable, parts = ("APPDATA", "AppData/Roaming") if os.name == "nt" else ("XDG_CONFIG_HOME", ".config")
    try:
        folder = Path(os.environ.get(variable) or Path.home() / parts)
    except RuntimeError:
        raise ExportError(
            f"this user has no home folder, and so no configuration: set HOME or {variable}"
        ) from None
    return folder / "tinylora-edge" / "models.toml"


def load_catalog() -> Catalog:
    """Return the catalog: what is shipped, and the user's own on top. Errors: see `read_catalog`."""
    files = [SHIPPED]
    with suppress(ExportError):  # who has no home has no models of his own
        files += [user_file()] if user_file().exists() else []
    return {name: model for path in files for name, model in read_catalog(path).items()}


def read_catalog(path: Path) -> Catalog:
    """Return the models of one file, by name.

    Raises:
        ExportError: the file cannot be read, is no TOML, or not a catalog.
    """
    try:
        tables = read_toml(path)
    except OSError as error:
        raise ExportError(f"the catalog {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ExportError(f"the catalog {path} is not TOML: {error}") from None
    return {name: _entry(path, name, table) for name, table in tables.items()}


def _entry(path: Path, name: str, table: Any) -> CatalogModel:
    def refuse(what: str) -> ExportError:
        return ExportError(
            f"the catalog {path} is wrong in [{name!r}]: {what}. docs/YOUR_MODEL.md has an example"
        )

    if not _NAME.fullmatch(name) or not isinstance(table, dict):
        raise refuse("expected a table, named by letters, digits, '.', '-' and '_'")
    for key, value in table.items():
        if type(value) is not _KINDS.get(key):
            raise refuse(f"{key} is {value!r}; the fields are {', '.join(_KINDS)}")
    for key in ("gguf", "files"):
        if key not in table:
            raise refuse(f"{key} is missing")
    for key in ("gguf", "weights"):
        if key in table and not _REPOSITORY.fullmatch(table[key]):
            raise refuse(f"{key} is {table[key]!r}, expected 'org/name' or 'org/name@revision'")
    if table["files"].count("{quant}") != 1 or not table["files"].endswith(".gguf"):
        raise refuse(f"files is {table['files']!r}, expected a name like 'Model-{{quant}}.gguf'")
    quants = {quant.lower(): size for quant, size in table.get("quants", {}).items()}
    for quant, size in quants.items():
        if type(size) is not int or size < 0:
            raise refuse(f"quants.{quant} is {size!r}, expected a size in bytes")
    table = dict.fromkeys(("weights", "parameters", "license")) | {"gated": False} | table
    table |= {"quants": quants, "default": table.get("default", next(iter(quants), PREFERRED[0])).lower()}
    return CatalogModel(name=name, origin=path, **table)


# The GGUF models of a repository, by the names of its files.


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


def models_in(names: Iterable[str]) -> list[GGUFModel]:
    """Return the models among file names (POSIX paths), sorted by name."""
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        stem, number, total = name[: -len(".gguf")], 1, 1
        if not name.lower().endswith(".gguf"):
            continue
        if (match := _PART.search(stem)) is not None:
            stem, number, total = stem[: match.start()], int(match[1]), int(match[2])
        if not _NO_MODEL.search(stem):
            parts.setdefault((stem, total), {})[number] = name
    models = []
    for (stem, total), found in sorted(parts.items()):
        base, match = stem.rpartition("/")[2], _QUANT.search(stem)
        quant = _normal(match[1].lower().replace("ud_", "ud-") if match is not None else base)
        missing = (f"{base}-{n:05}-of-{total:05}.gguf" for n in range(1, total + 1) if n not in found)
        models.append(GGUFModel(stem, quant, tuple(found[n] for n in sorted(found)), tuple(missing)))
    return models


def choose(
    models: list[GGUFModel], quant: str | None, where: object, default: str | None = None
) -> GGUFModel:
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
        asked = quant.removesuffix(".gguf").lower()
        found = [each for each in models if each.quant == _normal(asked)]
        found = found or [each for each in models if asked in _called(each)]
    elif len(models) == 1:
        found = models
    else:
        order = [_normal(default)] if default else list(PREFERRED)
        found = next((same for q in order if (same := [each for each in models if each.quant == q])), [])
    if not found:
        wanted = f"no quantization {quant or default!r}" if quant or default else "no usual quantization"
        known = ", ".join(sorted({each.quant for each in models}))
        raise ExportError(f"{where} has {wanted}: choose one with --quant: {known}")
    if len(found) > 1:
        names = ", ".join(each.stem for each in found)
        raise ExportError(f"{where} has several files for {found[0].quant}: name one with --quant: {names}")
    if missing := found[0].missing:
        raise ExportError(f"{where} lacks {len(missing)} parts of {found[0].stem}, such as {missing[0]}")
    return found[0]


def _normal(quant: str) -> str:
    """The one name of a quantization: lower case, `f16` for `fp16`."""
    return re.sub(r"^fp(16|32)$", r"f\1", quant.lower())


def _called(model: GGUFModel) -> set[str]:
    """The ways in which a file may be named: without its folder, and by a part."""
    names = {model.stem, *(file[: -len(".gguf")] for file in model.files)}
    return {form.lower() for name in names for form in (name, name.rpartition("/")[2])}


def _of_pattern(models: list[GGUFModel], pattern: str) -> list[GGUFModel]:
    """The models whose names are those of a pattern such as `Qwen3-8B-{quant}.gguf`, in any case."""
    before, _, after = pattern.removesuffix(".gguf").partition("{quant}")
    wanted = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.I)
    pairs = ((each, wanted.fullmatch(each.stem)) for each in models)
    return [
        GGUFModel(each.stem, _normal(found[1]), each.files, each.missing) for each, found in pairs if found
    ]


# The hub.


def _gguf(where: str | Listing, quant: str | None, entry: CatalogModel | None = None) -> SelectedFiles:
    listing = _list(where) if isinstance(where, str) else where
    models = models_in(listing.sizes)
    if entry is not None:
        models = _of_pattern(models, entry.files) or models
    chosen = choose(models, quant, listing, None if entry is None else entry.default)
    return SelectedFiles("base", listing, chosen.files, chosen.quant)


def _weights(listing: Listing, *, graph: bool) -> SelectedFiles:
    names = listing.sizes
    shards = [_SINGLE]
    if _INDEX in names:
        folder, _ = SelectedFiles("weights", listing, (_INDEX,)).fetch()
        try:
            shards = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(f"{_INDEX} of {listing} is not a safetensors index: {error!r}") from None
    missing = [name for name in shards if name not in names]
    if missing or not shards:
        raise HubError(
            f"{listing} has no safetensors, or lacks some ({', '.join(map(str, missing[:3]))}): pass the "
            "repository of the original weights as MODEL, or export from the GGUF (--factors-from gguf)"
        )
    beside = [
        name
        for name in sorted(names)
        if name in ("config.json", _INDEX)
        or (graph and _BESIDE.fullmatch(name) and not name.endswith(".index.json") and names[name] <= 10**8)
    ]
    return SelectedFiles("weights", listing, (*beside, *shards))


def _list(text: str) -> Listing:
    """Ask the hub what `org/name@revision` has; where it cannot be reached, look into the cache."""
    client = _client()
    name, _, revision = text.partition("@")
    revision = revision or "main"
    try:
        info = client.HfApi(library_name="tinylora-edge").model_info(
            name, revision=revision, files_metadata=True, timeout=30.0
        )
    except Exception as error:
        if (reason := _unreachable(error)) is None:
            raise _explained(error, name, revision) from error
        listing = _cached(name, revision, reason)
        wanted = isinstance(error, client.errors.OfflineModeIsEnabled)  # then nobody is told
        return replace(listing, offline="") if wanted else listing
    sizes, hashes = {}, {}
    for each in info.siblings or []:
        if ".." in each.rfilename.split("/") or each.rfilename.startswith("/") or "\\" in each.rfilename:
            continue  # leads out of the cache
        sizes[each.rfilename] = each.size or 0
        if each.lfs is not None:
            sizes[each.rfilename], hashes[each.rfilename] = each.lfs.size, each.lfs.sha256
    if not info.sha:
        raise HubError(f"{client.constants.ENDPOINT} names no commit for {name}: is HF_ENDPOINT a hub?")
    return Listing(name, revision, info.sha, sizes, hashes)


def _cached(name: str, revision: str, reason: str) -> Listing:
    client = _client()
    try:
        folder = Path(client.snapshot_download(name, revision=revision, local_files_only=True))
    except (client.errors.LocalEntryNotFoundError, client.errors.HFValidationError, OSError):
        raise HubError(
            f"{name} is not in the cache {client.constants.HF_HUB_CACHE}, and {reason}. Point the export at "
            "local files instead (a .gguf file, or a directory with --base), or copy the cache of a machine "
            "that has them (HF_HUB_CACHE)"
        ) from None
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    sizes = {file: path.stat().st_size for file, path in files.items()}
    return Listing(name, revision, folder.name, sizes, {}, reason)


def _unreachable(error: BaseException) -> str | None:
    """Why the hub cannot be reached; None for an answer of it, and for what went wrong here."""
    client = _client()
    where, errors = client.constants.ENDPOINT, client.errors
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # it says that both hub and cache failed
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the hub"
    status = _status(error)
    if status is not None and status >= 500:
        return f"{where} answers with {status}"
    # The client has changed its HTTP library before; that one's errors are the base of the client's own.
    transport = tuple(base for base in errors.HfHubHTTPError.__bases__ if base is not OSError)
    if status is None and isinstance(error, (*transport, ConnectionError, TimeoutError)):
        return f"{where} cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"
    return None


def _explained(error: Exception, name: str, revision: str) -> HubError:
    """Turn an error of the client into one of ours."""
    client = _client()
    where, errors, status = client.constants.ENDPOINT, client.errors, _status(error)
    if isinstance(error, errors.GatedRepoError) or (
        status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError)
    ):
        token = "no token is set now" if client.get_token() is None else "the token in use has no access"
        return HubError(
            f"{name} is gated: accept its licence at {where}/{name}, and log in with that account (hf auth "
            f"login, or HF_TOKEN); {token}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"{where} has no model {name}, or a private one: check the name, or log in (hf auth login, or "
            "HF_TOKEN) where it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name} has no revision {revision!r}: see {where}/{name}/commits/main")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{name!r} is no name of a repository: expected 'org/name'")
    reason = _unreachable(error) or " ".join((getattr(error, "strerror", None) or str(error)).split())
    return HubError(f"{name} was not downloaded: {reason}. Run the command again to go on")


def _status(error: object) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtraError("downloading models", "huggingface-hub", "hub") from None
    return huggingface_hub


def _at(repository: str, revision: str) -> str:
    """A reference of the catalog, at the revision that was asked for, if one was."""
    return f"{repository.partition('@')[0]}@{revision}" if revision else repository


def _is_local(text: str) -> bool:
    """Whether a name is a path: it exists, or nothing else looks like it."""
    try:
        if Path(text).exists():
            return True
    except OSError:  # too long for a name of a file
        return False
    looks = text.startswith(("/", ".", "~")) or text.lower().endswith(".gguf")
    return looks or "\\" in text or text.count("/") > 1 or Path(text).is_absolute()


def _is_bundle(text: str) -> bool:
    """Whether it is what `export NAME` leaves behind: once more NAME means the same."""
    return Path(text, BASIS_NAME).exists()
