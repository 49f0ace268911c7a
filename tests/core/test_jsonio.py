"""JSON within limits: every fault is one ValueError, and soon; and records of it, every field of its type."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tinylora_edge.jsonio import parse_json, read_json, restored
from tinylora_edge.limits import DEPTH, DIGITS

BAD = {
    "nothing": (b"", "Expecting value"),
    "no JSON": (b"{", "Expecting property name"),
    "no UTF-8": (b'"\xff"', "not UTF-8 text"),
    "half a character": (b'"\xed\xa0\x80"', "not UTF-8 text"),
    "5,000 digits below 0": (b"[-" + b"1" * 5000 + b"]", "more than 40 digits"),
    "41 digits": (b"1" * (DIGITS + 1), "more than 40 digits"),
    "65 lists": (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), "more than 64 levels deep"),
    "65 objects": (b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), "more than 64 levels deep"),
    "lists without end": (b"[" * 1_000_000, "nested too deeply"),
    "too long": (b'"' + b"x" * (1 << 24) + b'"', "more than 16,777,216 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json(tmp_path, name):
    text, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    path = tmp_path / "file.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_json(path)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', "[NaN]", "-Infinity", "[1e999]"])
def test_what_python_reads_and_json_does_not_know(text):
    parse_json(text)
    with pytest.raises(ValueError, match=r"there twice|is no JSON|is too large"):
        parse_json(text, strict=True)
    assert parse_json(f'{{"NaN": {json.dumps(text)}}}', strict=True) == {"NaN": text}


@dataclass
class Kept:
    values: np.ndarray
    count: int
    score: float = 0.5
    name: str = ""
    norms: list[float] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)


VALUES = np.zeros(2)


def test_a_record_comes_back():
    document = {"count": 3, "score": 1, "norms": [1, 0.5], "rows": [[1.0], []], "search": {"a": [None]}}
    found = restored(Kept, document, {"values": VALUES})
    assert found.values is VALUES
    assert (found.count, found.score, found.norms, found.rows) == (3, 1, [1, 0.5], [[1.0], []])
    assert (found.name, found.search) == ("", {"a": [None]})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "found list"),
        ({}, "count"),
        ({"count": "3"}, "count is '3'"),
        ({"count": True}, "count is True"),
        ({"count": 1.0}, "count is 1.0"),
        ({"count": 1, "score": "x"}, "score"),
        ({"count": 1, "norms": [1, None]}, "norms"),
        ({"count": 1, "rows": [1.0]}, "rows"),
        ({"count": 1, "search": []}, "search"),
        ({"count": 1, "other": 1}, "'other' is unknown"),
        ({"count": 1, "values": [1]}, "'values' is unknown"),
    ],
)
def test_another_type_is_refused(document, message):
    with pytest.raises(ValueError, match=message):
        restored(Kept, document, {"values": VALUES})
