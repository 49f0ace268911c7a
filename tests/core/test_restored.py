"""Records from documents: every field of its type, or one ValueError that names it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tinylora_edge.jsonio import restored


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


def test_what_was_kept_comes_back():
    said = {"count": 3, "score": 1, "norms": [1, 0.5], "rows": [[1.0], []], "search": {"a": [None]}}
    found = restored(Kept, said, {"values": VALUES})
    assert found.values is VALUES
    assert (found.count, found.score, found.norms, found.rows) == (3, 1, [1, 0.5], [[1.0], []])
    assert (found.name, found.search) == ("", {"a": [None]})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "found list"),
        (None, "found NoneType"),
        ({}, "count"),
        ({"count": "3"}, "count is '3'"),
        ({"count": True}, "count is True"),
        ({"count": 1.0}, "count is 1.0"),
        ({"count": 1, "score": "x"}, "score"),
        ({"count": 1, "name": 5}, "name is 5"),
        ({"count": 1, "norms": [1, None]}, "norms"),
        ({"count": 1, "norms": 1.0}, "norms"),
        ({"count": 1, "rows": [1.0]}, "rows"),
        ({"count": 1, "search": []}, "search"),
        ({"count": 1, "other": 1}, "'other' is unknown"),
        ({"count": 1, "values": [1]}, "'values' is unknown"),
    ],
)
def test_another_type_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        restored(Kept, said, {"values": VALUES})
