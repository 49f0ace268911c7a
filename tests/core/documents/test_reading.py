"""JSON and TOML within limits: every fault is one ValueError, and soon."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.documents import parse_json, parse_toml, read_json, read_toml
from tinylora_edge.limits import DEPTH, DIGITS

BAD_JSON = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'"\xff"',
    "half a character": b'"\xed\xa0\x80"',
    "5,000 digits": b"1" * 5000,
    "5,000 digits below 0": b"[-" + b"1" * 5000 + b"]",
    "41 digits": b"1" * (DIGITS + 1),
    "65 lists": b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1),
    "lists without end": b"[" * 1_000_000,
    "objects without end": b'{"a":' * 1_000_000,
    "quotes": b'"' + b'\\"' * 500_000,
    "quotes and lists": b"[" * 100 + b'"\\"' * 300_000,
    "too long": b'"' + b"x" * (1 << 24) + b'"',
}
BAD_TOML = {
    "no TOML": b"a",
    "no UTF-8": b"a = '\xff'",
    "5,000 digits": b"a = " + b"1" * 5000,
    "deep arrays": b"a = " + b"[" * 20_000,
    "deep tables": b"a = " + b"{a=" * 9_000,
    "deep keys": b".".join([b"a"] * 30_000) + b" = 1",
    "deep names of tables": b"[" + b". ".join([b"a"] * 20_000) + b"]",
    "deep quoted keys": b".".join([b'"a"'] * 15_000) + b" = 1",
    "65 levels": b".".join([b"a"] * (DEPTH + 1)) + b" = 1",
    "too long": b"#" * (1 << 17),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(tmp_path, name):
    for data in (BAD_JSON[name], bytearray(BAD_JSON[name]), memoryview(BAD_JSON[name])):
        with pytest.raises(ValueError, match=r"."):
            parse_json(data)
    path = tmp_path / "file.json"
    path.write_bytes(BAD_JSON[name])
    with pytest.raises(ValueError, match=r"."):
        read_json(path)


@pytest.mark.parametrize("name", BAD_TOML)
def test_bad_toml(tmp_path, name):
    path = tmp_path / "file.toml"
    path.write_bytes(BAD_TOML[name])
    for read in (lambda: parse_toml(BAD_TOML[name]), lambda: read_toml(path)):
        with pytest.raises(ValueError, match=r"."):
            read()


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="null"):
        read_json("a\0b")


def test_what_is_within_the_limits(tmp_path):
    deep = b"[" * DEPTH + b"]" * DEPTH
    assert parse_json(deep) == json.loads(deep)
    assert parse_json("9" * DIGITS) == int("9" * DIGITS)
    assert parse_json(b'"' + b"[" * 99_999 + b'"') == "[" * 99_999, "brackets in a text are no depth"
    assert parse_json(b"[" + b"[]," * 99 + b"[]]") == [[]] * 100, "nor are many side by side"
    assert parse_toml("a.b = [1, 2]") == {"a": {"b": [1, 2]}}
    (tmp_path / "x").write_bytes(b"{}")
    assert read_json(tmp_path / "x") == {}
    assert parse_toml(b"") == {}
    assert parse_toml("a = '" + "." * 999 + "' # " + "." * 999) == {"a": "." * 999}
    with pytest.raises(ValueError, match="more than 1 bytes"):
        read_json(tmp_path / "x", limit=1)


ASIDE = "." * 300 + "_" * 60 + "0" * 60
"""What is no key and no number where it is in a comment or a string."""


@pytest.mark.parametrize("quotes", ['"""', "'''"])
@pytest.mark.parametrize("text", ["", f"\n{ASIDE}\n", f"{ASIDE}\n''x{ASIDE}", f'{ASIDE}\n""#{ASIDE}'])
@pytest.mark.parametrize("end", [0, 1, 2])
def test_comments_and_strings_of_toml_are_no_keys_and_no_numbers(quotes, text, end):
    """A string of several lines may end in up to two of its quotes."""
    text = f"{text}x{quotes[:end]}"
    said = f"# {ASIDE}\na = {quotes}{text}{quotes} # {ASIDE} {quotes}\nb = '{ASIDE}'\nc = \"{ASIDE}\""
    assert parse_toml(said) == {"a": text.removeprefix("\n"), "b": ASIDE, "c": ASIDE}


@pytest.mark.parametrize(
    "before",
    [
        *('""', "''", '"\\""', '"""x"""', '"""x""""', '"""x"""""', '"""x\\""""', '"""\\\\"""', '"""""x"""'),
        *("'''x'''", "'''x''''", "'''x'''''", "'''\\'''", '"""\\\n"""', "'#'", '"#"', '"""#"""', "1 #'\n"),
    ],
)
def test_what_comes_after_a_string_of_toml_is_within_the_limits(before):
    with pytest.raises(ValueError, match="a number of more than 40 digits"):
        parse_toml(f"a = [{before}, {'1' * 41}]")
    with pytest.raises(ValueError, match="a key of more than 256 parts"):
        parse_toml(f"a = [{before}, {{b{'.b' * 300} = 1}}]")


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


@given(st.binary(max_size=200))
def test_anything_else_is_a_value_error(data):
    for parse in (parse_json, parse_toml):
        try:
            parse(data)
        except ValueError:
            continue


def test_a_long_text_takes_memory_in_proportion():
    """A regular expression that keeps where it might come back to takes a hundred bytes a character."""
    data = json.dumps([[[]] * 100, "x" * 1_000_000]).encode()
    tracemalloc.start()
    try:
        assert parse_json(data)[1] == "x" * 1_000_000
        assert tracemalloc.get_traced_memory()[1] < 16 * len(data)
    finally:
        tracemalloc.stop()
