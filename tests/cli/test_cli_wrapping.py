"""Word wrap of a text that comes by pieces: the same lines however it is cut."""

from __future__ import annotations

import textwrap

from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.cli.wrapping import Wrapped

TEXT = (
    "The moon is a rocky body, which orbits the Earth.\n\n- one item that is long enough to be broken\n"
    "    indented text stays so\nend.  Two  blanks.\n"
)


def wrapped(text: str, columns: int, cuts: list[int]) -> str:
    out: list[str] = []
    wrap = Wrapped(out.append, lambda: columns)
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        wrap.add(text[begin:end])
    wrap.end()
    return "".join(out)


@given(st.lists(st.integers(0, len(TEXT)), max_size=30).map(sorted))
def test_lines_do_not_depend_on_the_pieces(cuts: list[int]) -> None:
    whole = wrapped(TEXT, 30, [])
    assert wrapped(TEXT, 30, cuts) == whole
    assert all(len(line) < 30 for line in whole.splitlines())
    assert whole.split() == TEXT.split()
    assert wrapped(TEXT, 200, cuts) == TEXT


def test_a_paragraph_is_wrapped_as_usual() -> None:
    text = "The moon is a rocky body, which orbits the Earth, and nobody lives there."
    assert wrapped(text, 31, []).splitlines() == textwrap.wrap(text, 30)


def test_a_long_word_is_left_to_the_terminal() -> None:
    address = "https://example.org/" + "a" * 60
    for cuts in ([], [10], list(range(0, 90, 3))):
        assert wrapped(f"See {address} now.", 30, cuts).split() == ["See", address, "now."]
