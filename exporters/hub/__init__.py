"""The hub: how the name of a model becomes files on this machine.

`find` says what a name stands for (a path, a name of the catalog, a repository on the hub), and
`Selection.fetch` brings it; `resolve` does both. `load_catalog` reads the short names. A `Hub` is a hub with
its cache, for single files. Importing this package does not load huggingface_hub; making a `Hub` does.
"""

from .cache import Download, Hub, HubFile, Repository
from .catalog import Catalog, CatalogModel, load_catalog, read_catalog, split_repository, user_file
from .resolve import cached_quants, find, resolve
from .selection import ResolvedModel, SelectedFiles, Selection

__all__ = [
    "Catalog",
    "CatalogModel",
    "Download",
    "Hub",
    "HubFile",
    "Repository",
    "ResolvedModel",
    "SelectedFiles",
    "Selection",
    "cached_quants",
    "find",
    "load_catalog",
    "read_catalog",
    "resolve",
    "split_repository",
    "user_file",
]
