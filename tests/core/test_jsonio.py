"""JSON within limits: every fault is one ValueError, and soon."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.jsonio import parse_json, read_json
from tinylora_edge.limits import DEPTH, DIGITS

BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'"\xff"',
    "half a character": b'"\xed\xa0\x80"',
    "5,000 digits below 0": b"[-" + b"1" * 5000 + b"]",
    "41 digits": b"1" * (DIGITS + 1),
    "65 lists": b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1),
    "65 objects": b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1),
    "lists without end": b"[" * 1_000_000,
    "too long": b'"' + b"x" * (1 << 24) + b'"',
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json(tmp_path, name):
    for data in (BAD[name], bytearray(BAD[name]), memoryview(BAD[name])):
        with pytest.raises(ValueError, match=r"."):
            parse_json(data)
    path = tmp_path / "file.json"
    path.write_bytes(BAD[name])
    with pytest.raises(ValueError, match=r"."):
        read_json(path)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', "[NaN]", "-Infinity", "[1e999]"])
def test_what_python_reads_and_json_does_not_know(text):
    parse_json(text)
    with pytest.raises(ValueError, match=r"."):
        parse_json(text, strict=True)
    assert parse_json(f'{{"NaN": {json.dumps(text)}}}', strict=True) == {"NaN": text}


def test_what_is_within_the_limits(tmp_path):
    deep = b"[" * DEPTH + b"]" * DEPTH
    assert parse_json(deep) == json.loads(deep)
    assert parse_json("9" * DIGITS) == int("9" * DIGITS)
    assert parse_json(b'"' + b"[" * 99_999 + b'"') == "[" * 99_999, "brackets in a text are no depth"
    assert parse_json(b"[" + b"[]," * 99 + b"[]]") == [[]] * 100, "nor are many side by side"
    (tmp_path / "x").write_bytes(b"{}")
    assert read_json(tmp_path / "x") == {}
    with pytest.raises(ValueError, match="more than 1 bytes"):
        read_json(tmp_path / "x", limit=1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_what_python_makes_of_it(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half a character, which no file can hold
            continue
        assert parse_json(data) == json.loads(data)
