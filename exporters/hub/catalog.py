"""The catalog: short names to repositories on the hub. Data alone; nothing here goes over the network.

The package ships `models.toml`. A user's own file comes on top of it, and one named by `--catalog` or
`TINYLORA_EDGE_CATALOG` on top of both; an entry replaces the one of the same name as a whole. The fields are
in docs/MODELS.md.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ...documents import read_toml
from ...errors import ExportError

VARIABLE = "TINYLORA_EDGE_CATALOG"
SHIPPED = Path(__file__).with_name("models.toml")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REPOSITORY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s@:]+))?")

_KINDS: dict[str, tuple[type, str]] = {  # field -> its type, in words
    "parameters": (int, "a number"),
    "license": (str, "a string"),
    "gated": (bool, "true or false"),
    "weights": (str, "a string"),
    "gguf": (str, "a string"),
    "files": (str, "a string"),
    "quants": (dict, "a table of sizes in bytes"),
    "default": (str, "a string"),
}


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


def user_file() -> Path:
    """Return where a user's own models are: `tinylora-edge/models.toml` in the folder for configuration.

    Raises:
        ExportError: this user has no home.
    """
    windows = os.name == "nt"
    variable, parts = ("APPDATA", "AppData/Roaming") if windows else ("XDG_CONFIG_HOME", ".config")
    try:
        base = os.environ.get(variable) or Path.home() / parts
    except RuntimeError:
        raise ExportError(
            f"this user has no home folder, and so no configuration: set HOME or {variable}"
        ) from None
    return Path(base) / "tinylora-edge" / "models.toml"


def load_catalog(extra: str | PathLike[str] | None = None) -> Catalog:
    """Return the catalog: what is shipped, the user's own, and one more file on top.

    Args:
        extra: that file; None for the one that `TINYLORA_EDGE_CATALOG` names, if it does.

    Raises:
        ExportError: a file is missing, no TOML, or not a catalog.
    """
    extra = extra if extra is not None else os.environ.get(VARIABLE) or None
    files = [SHIPPED]
    with suppress(ExportError):  # who has no home has no models of his own
        files += [user_file()] if user_file().exists() else []
    if extra is not None:
        files.append(Path(extra))
    catalog: Catalog = {}
    for path in files:
        catalog |= read_catalog(path)
    return catalog


def read_catalog(path: Path) -> Catalog:
    """Return the models of one file, by name.

    Args:
        path: of a TOML file, as docs/MODELS.md describes it.

    Raises:
        ExportError: see `load_catalog`.
    """
    try:
        tables = read_toml(path)
    except FileNotFoundError:
        raise ExportError(f"the catalog {path} does not exist") from None
    except OSError as error:
        raise ExportError(f"the catalog {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ExportError(f"the catalog {path} is not TOML: {error}") from None
    return {name: _entry(path, name, table) for name, table in tables.items()}


def split_repository(text: str) -> tuple[str, str | None] | None:
    """Return repository and revision of a text, `org/name` or `org/name@revision`; None for another text."""
    match = REPOSITORY.fullmatch(text)
    return (match["name"], match["revision"]) if match is not None else None


def near(name: str, names: Iterable[str]) -> str:
    """Return names that resemble one, as the middle of a sentence; "" where none does."""
    by_case = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), by_case, n=3, cutoff=0.6)
    found += [known for known in by_case if known.startswith(name.lower()) and known not in found][:3]
    return ", ".join(by_case[known] for known in found[:4])


def _entry(path: Path, name: str, table: Any) -> CatalogModel:
    def refuse(what: str) -> ExportError:
        return ExportError(
            f"the catalog {path} is wrong in [{name!r}]: {what}. docs/MODELS.md has an example"
        )

    if not NAME.fullmatch(name):
        raise refuse("a name has letters, digits, '.', '-' and '_' alone")
    if not isinstance(table, dict):
        raise refuse(f"it is {table!r}, expected a table")
    for field, value in table.items():
        if field not in _KINDS:
            raise refuse(f"unknown field {field!r}; the fields are {', '.join(_KINDS)}")
        kind, words = _KINDS[field]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise refuse(f"{field} is {value!r}, expected {words}")
    for field in ("gguf", "files"):
        if field not in table:
            raise refuse(f"{field} is missing")
    for field in ("gguf", "weights"):
        if field in table and split_repository(table[field]) is None:
            raise refuse(f"{field} is {table[field]!r}, expected 'org/name' or 'org/name@revision'")
    if table["files"].count("{quant}") != 1 or not table["files"].endswith(".gguf"):
        raise refuse(f"files is {table['files']!r}, expected a name like 'Model-{{quant}}.gguf'")
    quants = {quant.lower(): size for quant, size in table.get("quants", {}).items()}
    for quant, size in quants.items():
        if type(size) is not int or size < 0:
            raise refuse(f"quants.{quant} is {size!r}, expected a size in bytes")
    return CatalogModel(
        name=name,
        gguf=table["gguf"],
        files=table["files"],
        quants=quants,
        default=table.get("default", next(iter(quants), "q4_k_m")).lower(),
        weights=table.get("weights"),
        parameters=table.get("parameters"),
        license=table.get("license"),
        gated=table.get("gated", False),
        origin=path,
    )
