"""The text of an answer as it comes: whole characters, nothing of a stop text; and the options of a call."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import OptionError, RequestError
from tinylora_edge.runtime.answers import STOPS, Text, Token, sampling_of


def pieces_of(parts: Sequence[bytes], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    text, pieces = Text(stop), []
    for part in parts:
        pieces.append(text.add(part).text)
        if text.stopped:
            break
    return [*pieces, text.rest().text], text.stopped


def test_characters_come_whole() -> None:
    data = "a€b".encode()
    assert pieces_of([data[:2], data[2:3], data[3:]]) == (["a", "", "€b", ""], False)
    assert pieces_of([b"a\xe2\x82"]) == (["a", ""], False), "what never became a character is left out"


def test_a_beginning_of_a_stop_text_is_held_back() -> None:
    assert pieces_of([b"one E", b"N", b"D two"], ["END"]) == (["one ", "", "", ""], True)
    assert pieces_of([b"one E", b"N", b"E two"], ["END"]) == (["one ", "", "ENE two", ""], False)
    assert pieces_of([b"one EN"], ["END"]) == (["one ", "EN"], False)


def test_the_first_stop_text_counts() -> None:
    assert pieces_of([b"x, b; c"], [";", ","]) == (["x", ""], True)


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
    assert "".join(pieces_of(parts, stop)[0]) == expected


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_tokens_come_with_their_text(stop: tuple[str, ...]) -> None:
    text, tokens = Text(stop), [Token(b"a", -1.0), Token(b"z", -2.0), Token(b"b", -3.0)]
    pieces = [text.add(token.data, token) for token in tokens]
    assert [token for piece in pieces for token in piece.tokens] == tokens
    assert pieces[1].tokens == (() if stop else (tokens[1],))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0: it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be above 0"),
        ({"max_tokens": 0}, "max_tokens is 0: it must be 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"logprobs": 21}, "logprobs is 21: it must be from 0 to 20"),
        ({"stop": ["x"] * 17}, "stop is 17 texts: it must be at most 16"),
        ({"stop": [""]}, "a stop text has 1 to 1024 characters, not 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        sampling_of(options)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(options))


def test_stop_texts_of_a_call_and_of_the_chat_format() -> None:
    assert sampling_of({"stop": "a"}, ["</s>", "a"]).stop == ("a", "</s>")
    most = [str(number) for number in range(STOPS)]
    assert sampling_of({"stop": most}, ["</s>"]).stop == (*most, "</s>"), "the format's own are not counted"
    with pytest.raises(OptionError, match="no option 'temprature': there are max_tokens, temperature"):
        sampling_of({"temprature": 1})  # type: ignore[typeddict-unknown-key]


def test_where_a_stop_text_ends_an_answer_the_tokens_before_it_are_kept() -> None:
    text, tokens = Text(("\n\n",)), [Token(data, -1.0) for data in (b"one.\n", b"two", b".\n", b"\n")]
    pieces = [text.add(token.data, token) for token in tokens]
    assert "".join(piece.text for piece in pieces) == "one.\ntwo."
    assert [token for piece in pieces for token in piece.tokens] == tokens[:3], "the last is the stop text's"


@pytest.mark.parametrize("last", [b"\xac", b"\xac\xe2"])
def test_parts_of_a_character_of_a_stop_text_are_no_tokens_of_the_answer(last: bytes) -> None:
    text, tokens = Text(("€",)), [Token(data, -1.0) for data in (b"one", b"\xe2\x82", last)]
    pieces = [text.add(token.data, token) for token in tokens]
    assert [token for piece in pieces for token in piece.tokens] == tokens[:1]
