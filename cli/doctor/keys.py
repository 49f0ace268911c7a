"""Keys: secret ones that others on this machine can read."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ...limits import PEM_BYTES
from .. import console
from .finding import FAULT, NOTE, OK, Finding

CHECK = "keys"

_MAC = re.compile(rb"\s*[0-9a-fA-F]{64}\s*\Z")
_MOST = 10_000  # entries of a folder


def check(folders: Iterable[Path], named: Sequence[Path] = ()) -> Iterator[Finding]:
    """Yield the secret keys in folders, and in them alone, that others can read.

    Args:
        folders: those that can be read are looked at.
        named: folders and files that somebody asked for: one that cannot be read is a fault.
    """
    found, seen = 0, set()
    for folder in (*folders, *named):
        try:
            files, whole = _files(folder)
        except OSError as error:
            if folder in named:
                yield Finding(CHECK, FAULT, f"{console.describe(error)}: no key was looked for there")
            continue
        if not whole:
            text = f"{folder} has more than {_MOST:,} entries, of which the others were not looked at"
            yield Finding(CHECK, NOTE, text, console.command("doctor", "--check", CHECK, "--keys", "FILE"))
        for path in files:
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


def _files(folder: Path) -> tuple[list[Path], bool]:
    """Return the files of a folder that may be keys, and whether all entries were looked at; a file alone.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if folder.is_file():
        with open(folder, "rb"):
            return [folder], True
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST:
                return files, False
            with suppress(OSError):  # a link that leads to itself
                if entry.is_file() and entry.stat().st_size <= PEM_BYTES:
                    files.append(Path(folder, entry.name))
    return files, True


def _is_secret(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            data = file.read(PEM_BYTES)
    except OSError:
        return False
    return b"-----BEGIN PRIVATE KEY-----" in data or _MAC.match(data) is not None
