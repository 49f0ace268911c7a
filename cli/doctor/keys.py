"""Keys: secret ones that others on this machine can read."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...maxima import PEM_BYTES
from .finding import FAULT, OK, Finding

CHECK = "keys"

_MAC = re.compile(rb"\s*[0-9a-fA-F]{64}\s*\Z")
_MOST = 10_000  # entries of a folder


def check(folders: Iterable[Path]) -> Iterator[Finding]:
    """Yield the secret keys in folders, and in them alone, that others can read."""
    found, seen = 0, set()
    for folder in folders:
        for path in _files(folder):
            if (name := path.resolve()) in seen or not _is_secret(path):
                continue
            seen.add(name)
            found += 1
            if os.name != "nt" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                text = f"{path} is a secret key, and others on this machine can read it"
                yield Finding(CHECK, FAULT, text, shlex.join(["chmod", "600", str(path)]))
            else:
                yield Finding(CHECK, OK, f"{path} is a secret key, and its owner's alone")
    if not found:
        yield Finding(CHECK, OK, "no secret key lies where was looked")


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= _MOST:
                    return
                if entry.is_file() and entry.stat().st_size <= PEM_BYTES:
                    yield Path(folder, entry.name)
    except OSError:
        return


def _is_secret(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            data = file.read(PEM_BYTES)
    except OSError:
        return False
    return b"-----BEGIN PRIVATE KEY-----" in data or _MAC.match(data) is not None
