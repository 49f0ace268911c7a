"""Stores of users' vectors: a frame for each user, of one basis.

* `sqlite` keeps them in a file, with what was accepted of each user: a million users, several processes.
* `published` reads the layout that `publish` writes, a directory or what fsspec reaches.
* `user` has what both share, and `lines` the format that is imported and exported.
"""

from .lines import read_lines, write_lines
from .published import PublishedStore
from .sqlite import Imported, SqliteStore
from .user import Store, Stored, check_user

__all__ = [
    "Imported",
    "PublishedStore",
    "SqliteStore",
    "Store",
    "Stored",
    "check_user",
    "read_lines",
    "write_lines",
]
