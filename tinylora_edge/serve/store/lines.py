"""Users' vectors as lines of text, for import and export: a JSON object a line.

{"user": "alice", "frame": "<base64url>"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ...documents import parse_json
from ...errors import FrameError, RequestError, StoreError
from ...limits import IMPORT_LINE_BYTES
from ...wire import text
from .user import Stored, check_user


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield user and frame of each line; empty lines are skipped.

    Args:
        file: with the lines.
        name: of the file, for errors.

    Raises:
        StoreError: a line is none of these; the message has its number.
    """
    number = 0
    while line := file.readline(IMPORT_LINE_BYTES + 1):
        number += 1
        if not line.strip():
            continue
        try:
            entry = parse_json(line, limit=IMPORT_LINE_BYTES)
            if not isinstance(entry, dict) or entry.keys() != {"user", "frame"}:
                raise ValueError('it is no object with "user" and "frame" alone')
            user, frame = entry["user"], entry["frame"]
            if not isinstance(user, str) or not isinstance(frame, str):
                raise ValueError("user and frame are texts")
            yield check_user(user), text.decode(frame)
        except (ValueError, FrameError, RequestError) as error:
            raise StoreError(f"{name}, line {number}: {error}") from None


def write_lines(entries: Iterable[Stored]) -> Iterator[bytes]:
    """Yield the line of each of the entries, with its line feed. Never raises."""
    for entry in entries:
        line = {"user": entry.user, "frame": text.encode(entry.frame)}
        yield json.dumps(line).encode() + b"\n"
