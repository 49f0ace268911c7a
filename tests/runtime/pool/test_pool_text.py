"""What is shown of an answer: whole characters, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.runtime.pool.request import Token
from tinylora_edge.runtime.pool.text import Text


def shown(parts: Sequence[bytes], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    text, pieces = Text(stop), []
    for part in parts:
        pieces.append(text.add(part).text)
        if text.stopped:
            break
    return [*pieces, text.rest().text], text.stopped


def test_characters_come_whole() -> None:
    data = "a€b".encode()
    assert shown([data[:2], data[2:3], data[3:]]) == (["a", "", "€b", ""], False)
    assert shown([b"a\xe2\x82"]) == (["a", ""], False), "what never became a character is left out"


def test_a_beginning_of_a_stop_text_is_held_back() -> None:
    assert shown([b"one E", b"N", b"D two"], ["END"]) == (["one ", "", "", ""], True)
    assert shown([b"one E", b"N", b"E two"], ["END"]) == (["one ", "", "ENE two", ""], False)
    assert shown([b"one EN"], ["END"]) == (["one ", "EN"], False)


def test_the_first_stop_text_counts() -> None:
    assert shown([b"x, b; c"], [";", ","]) == (["x", ""], True)


@given(st.text("abE", max_size=12), st.lists(st.text("abE", min_size=1, max_size=3), max_size=2), st.data())
def test_however_it_comes_the_text_is_the_same(text: str, stop: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    parts = [text[a:b].encode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    # A stop text ends the answer in the token that completes it; cut at the first one inside that token.
    expected = text
    for end in [*cuts, len(text)]:
        found = [at for each in stop if (at := text[:end].find(each)) >= 0]
        if found:
            expected = text[: min(found)]
            break
    assert "".join(shown(parts, stop)[0]) == expected


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_tokens_come_with_their_text(stop: tuple[str, ...]) -> None:
    text, tokens = Text(stop), [Token(b"a", -1.0), Token(b"z", -2.0), Token(b"b", -3.0)]
    pieces = [text.add(token.data, token) for token in tokens]
    assert [token for piece in pieces for token in piece.tokens] == tokens
    assert pieces[1].tokens == (() if stop else (tokens[1],))
