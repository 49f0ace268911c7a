"""Names of models: a path, a short name of the catalog, or `org/name` on the Hugging Face hub.

`resolve` brings what a name stands for onto this machine. huggingface_hub does the rest: names, tokens,
proxies, its cache, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, resumed downloads, progress bars. The catalog is
`models.toml`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from tinylora_edge.errors import ExportError, HubError, MissingExtraError
from tinylora_edge.formats.bundle import BASIS_NAME

from .weights.hf import INDEX, SINGLE, shard_names

PREFERRED = ("q4_k_m", "q4_0", "mxfp4", "q8_0", "f16", "bf16")
"""Quantizations, tried in this order where neither the caller nor the catalog names one."""

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^\s@:]+))?")
# Names of GGUF files: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "GGUF Naming Convention".
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(
    r"(?:^|[-._])((?:ud[-_])?(?:i?q\d(?:_[0-9a-z]+)*|tq\d_\d|mxfp4(?:_moe)?|nvfp4|bf16|fp?16|fp?32))$", re.I
)
_NO_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|lora)(?:[-._]|$)", re.I)  # other files beside models
_BESIDE = re.compile(r"[^/]+\.(?:json|model|txt|jinja)")  # configuration and tokenizer; never code


@dataclass(frozen=True)
class CatalogModel:
    """An entry of the catalog: `gguf` and `weights` are repositories, `quants` quantizations and their bytes.

    The bytes are approximate. An empty `default` stands for the first of `quants`. A `gated` model can be
    downloaded once its licence is accepted on the hub.
    """

    name: str
    gguf: str
    quants: dict[str, int]
    weights: str
    parameters: int
    license: str
    default: str = ""
    gated: bool = False


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
        model: what the factors are taken from: a GGUF file (of a split one, the first), or a Hugging Face
            directory. The first argument of an export.
        base: the GGUF that is deployed, where it is another file. The argument `base` of an export.
        provenance: for the manifest: repositories, commits, files; None for paths.
    """

    model: Path
    base: Path | None = None
    provenance: dict[str, Any] | None = field(default=None, repr=False)


class Listing(NamedTuple):
    """The files of a repository `org/name` at one commit, with their bytes."""

    name: str
    revision: str
    commit: str
    sizes: dict[str, int]

    def __str__(self) -> str:
        return f"{self.name}@{self.commit[:12]}"


def default_name(model: str | PathLike[str]) -> str | None:
    """Return a name for what is made of a model: the catalog's, or the repository's; None for a path."""
    entry, here = _entry(str(model))
    if here:
        return None
    return entry.name if entry else str(model).partition("@")[0].rpartition("/")[2]


def resolve(
    model: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    quant: str | None = None,
    deployed: bool = True,
    graph: bool = False,
    say: Callable[[str, Listing, int], None] = lambda what, where, size: None,
) -> ResolvedModel:
    """Find a model and bring it onto this machine.

        found = resolve("qwen2.5-7b", quant="q4_k_m")
        export_gguf(found.model, "qwen", base=found.base, provenance=found.provenance)

    Args:
        model: a local path, which wins where it exists; a name of the catalog; or a repository on the hub,
            `org/name` or `org/name@revision`.
        base: the GGUF that is deployed, where it is not the one that `model` names: a path, or a repository.
        quant: the quantization of the base, such as `q4_k_m`; None for the model's default.
        deployed: a GGUF is deployed. False for another engine alone.
        graph: a graph is built of the weights: bring their configuration and tokenizer too.
        say: called before each download with what it is, from where, and its bytes.

    The factors come from the original weights where `base` is given or a graph is built, and else from the
    deployed GGUF itself, so that one download is enough.

    Raises:
        ExportError: the name is unknown, or the options do not go together.
        HubError: the hub does not have it or refuses access, or the network or the disk fails.
        MissingExtraError: the hub is needed, and huggingface_hub is not installed.
    """
    text, local = str(model), base is not None and _is_local(str(base))
    if base is not None and not local and not _REPOSITORY.fullmatch(str(base)):
        raise ExportError(f"{base} does not exist: --base takes a GGUF file, or org/name on the hub")
    entry, here = _entry(text)
    fetched = not local if base is not None else not here and (deployed or not graph)
    if quant is not None and not fetched:
        why = f"{base or text} is a local path" if local or here else "a graph is of the original weights"
        raise ExportError(f"--quant {quant} chooses a file on the hub, and {why}")
    wanted: dict[str, tuple[Listing, tuple[str, ...], str]] = {}
    if fetched:
        listing = _list(str(base or (entry.gguf if entry else text)))
        default = (entry.default or next(iter(entry.quants))) if entry and base is None else None
        chosen = choose(models_in(listing.sizes), quant, listing, default)
        wanted["base"] = listing, chosen.files, chosen.quant
    if not here and (base is not None or graph):
        listing = _list(entry.weights if entry else text)
        wanted["weights"] = listing, _weights(listing, graph=graph), "the original weights"
    paths, sections = {"base": Path(base)} if base is not None and local else {}, dict[str, Any]()
    for role, (listing, files, what) in wanted.items():
        say(what, listing, sum(listing.sizes[name] for name in files))
        folder, sections[role] = _fetch(listing, files)
        paths[role] = folder / files[0] if role == "base" else folder
    found = Path(text) if here else paths.get("weights", paths.get("base", Path()))
    own = paths.get("base") if deployed or base is not None else None
    if not sections:
        return ResolvedModel(found, own)
    about = {"name": entry.name, "license": entry.license} if entry is not None and not here else {}
    about["hub"] = _client().constants.ENDPOINT
    return ResolvedModel(found, None if own == found else own, {**about, **sections})


def _entry(text: str) -> tuple[CatalogModel | None, bool]:
    """Return what the catalog has of a name, and whether it is a local path."""
    entry = load_catalog().get(text.lower())
    # A folder NAME with a bundle in it is what `export NAME` wrote: NAME stays the model of the catalog.
    here = _is_local(text) and not (entry is not None and Path(text, BASIS_NAME).exists())
    if not here and entry is None and not _REPOSITORY.fullmatch(text):
        near = difflib.get_close_matches(text.lower(), load_catalog(), n=3)
        raise ExportError(
            f"{text!r} is neither a local path nor a model of the catalog"
            + (f"; near it: {', '.join(near)}" if near else "")
            + ". List them with tinylora-edge export; any org/name on the hub works as well"
        )
    return entry, here


@cache
def load_catalog() -> dict[str, CatalogModel]:
    """Return the models that have short names, by name."""
    tables = tomllib.loads(Path(__file__).with_name("models.toml").read_text("utf-8"))
    return {name: CatalogModel(name, **table) for name, table in tables.items()}


# The GGUF models of a repository, by the names of its files.


class GGUFModel(NamedTuple):
    """A model among the files of a repository: its `files` that are there, of `parts` in all."""

    stem: str
    quant: str
    files: tuple[str, ...]
    parts: int = 1


def models_in(names: Iterable[str]) -> list[GGUFModel]:
    """Return the models among file names (POSIX paths), sorted by name."""
    parts: dict[tuple[str, int], list[str]] = {}
    for name in sorted(names):
        stem, total = name[: -len(".gguf")], 1
        if (match := _PART.search(stem)) is not None:
            stem, total = stem[: match.start()], int(match[2])
        if name.lower().endswith(".gguf") and not _NO_MODEL.search(stem):
            parts.setdefault((stem, total), []).append(name)
    models = []
    for (stem, total), files in parts.items():
        match = _QUANT.search(stem)
        quant = match[1].lower().replace("ud_", "ud-") if match is not None else stem.rpartition("/")[2]
        models.append(GGUFModel(stem, _normal(quant), tuple(files), total))
    return models


def choose(
    models: list[GGUFModel], quant: str | None, where: object, default: str | None = None
) -> GGUFModel:
    """Choose a model by its quantization, or the name of its file; by `default` or `PREFERRED` without."""
    if not models:
        raise ExportError(f"{where} has no GGUF: name the one that is deployed with --base, FILE or org/name")
    found = models
    if quant is not None:
        name = _normal(quant.removesuffix(".gguf"))
        found = [m for m in models if name in (m.quant, (stem := m.stem.lower()), Path(stem).name)]
    elif len(models) > 1:
        order = [default] if default else PREFERRED
        found = next((same for q in order if (same := [each for each in models if each.quant == q])), [])
    if len(found) != 1:
        wanted = f"no quantization {quant or default!r}" if quant or default else "no usual quantization"
        wanted = f"several files for {found[0].quant}" if found else wanted
        known = ", ".join(sorted(each.stem if found else each.quant for each in found or models))
        raise ExportError(f"{where} has {wanted}: choose one with --quant: {known}")
    if len(found[0].files) < found[0].parts:
        raise ExportError(f"{where} has {len(found[0].files)} of {found[0].parts} parts of {found[0].stem}")
    return found[0]


def _normal(quant: str) -> str:
    return re.sub(r"^fp(16|32)$", r"f\1", quant.lower())


# The hub.


def _fetch(here: Listing, files: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Download what is missing; return the folder, and what a manifest says of it."""
    facts = []
    for name in files:
        try:
            path = Path(_client().hf_hub_download(here.name, name, revision=here.revision))
        except Exception as error:  # of the HTTP library, which the client has changed before
            why = f"{name} of {here} was not downloaded: {_reason(error)}. Run the command again to go on"
            raise HubError(why) from error
        folder = path.parents[name.count("/")]
        if folder.name != here.commit:
            raise HubError(f"{here.name} was changed meanwhile, to {folder.name}: run the command again")
        facts.append({"name": name, "bytes": path.stat().st_size})
        if re.fullmatch(r"[0-9a-f]{64}", blob := path.resolve().name):  # a file in Git LFS
            facts[-1]["sha256"] = blob
    return folder, {"repository": here.name, "revision": here.commit, "files": facts}


def _weights(listing: Listing, *, graph: bool) -> tuple[str, ...]:
    names, shards = listing.sizes, [SINGLE]
    if INDEX in names:
        shards = shard_names(_fetch(listing, [INDEX])[0])
    missing = [name for name in shards if name not in names]
    if missing:
        raise HubError(
            f"{listing} has no safetensors, or lacks some ({', '.join(missing[:3])}): pass the "
            "repository of the original weights as MODEL, or export from the GGUF alone"
        )
    beside = ("config.json", INDEX)
    return *(n for n in sorted(names) if n in beside or (graph and _BESIDE.fullmatch(n))), *shards


def _list(text: str) -> Listing:
    """Return what `org/name@revision` has: on the hub, or in the cache where HF_HUB_OFFLINE says so."""
    client = _client()
    name, _, revision = text.partition("@")
    revision = revision or "main"
    try:
        info = client.HfApi(library_name="tinylora-edge").model_info(
            name, revision=revision, files_metadata=True, timeout=30.0
        )
    except client.errors.OfflineModeIsEnabled:
        return _cached(name, revision)
    except Exception as error:  # of the HTTP library, which the client has changed before
        raise HubError(
            f"{_reason(error)}. With HF_HUB_OFFLINE=1 the cache is used; or point the export at local files "
            "(a .gguf file, or a directory with --base)"
        ) from error
    return Listing(name, revision, info.sha, {each.rfilename: each.size or 0 for each in info.siblings or []})


def _cached(name: str, revision: str) -> Listing:
    client = _client()
    try:
        folder = Path(client.snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # whatever fails, the files are not in the cache
        raise HubError(
            f"{name} is not in the cache {client.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            "asking the hub: copy the cache of a machine that has it (HF_HUB_CACHE)"
        ) from None
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return Listing(name, revision, folder.name, sizes)


def _reason(error: Exception) -> str:
    return f"{_client().constants.ENDPOINT}: {' '.join(str(error).split()) or type(error).__name__}"


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtraError("downloading models", "huggingface-hub", "hub") from None
    return huggingface_hub


def _is_local(text: str) -> bool:
    try:
        if Path(text).exists():
            return True
    except OSError:  # too long for a name of a file
        return False
    looks = text.startswith(("/", ".", "~")) or text.lower().endswith(".gguf")
    return looks or "\\" in text or text.partition("@")[0].count("/") > 1 or Path(text).is_absolute()
