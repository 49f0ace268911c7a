"""Text forms: base64url and hexadecimal, told apart from bytes and from each other."""

from __future__ import annotations

import base64

import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import FrameError
from tinylora_edge.wire.text import TEXT_CHARACTERS, decode, encode, is_text

FRAMES = [bytes.fromhex(entry["frame_hex"]) for entry in support.golden_frames()]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame[0]:#x}-{len(frame)}")
@pytest.mark.parametrize("scheme", [False, True])
def test_golden_frames_round_trip(frame, scheme):
    text = encode(frame, scheme=scheme)
    assert text == "tinylora:" * scheme + base64.urlsafe_b64encode(frame).decode().rstrip("=")
    for one in (text, "tinylora:" * scheme + frame.hex()):
        folded = f"  {one[:20]}\r\n{one[20:]}\n"
        for printed in (one, one.encode(), folded, one.replace("tinylora", "TinyLoRA")):
            assert is_text(printed.encode() if isinstance(printed, str) else printed)
            assert decode(printed) == frame
    assert decode(frame.hex().upper()) == frame
    assert decode(base64.urlsafe_b64encode(frame)) == frame, "with padding"
    assert not is_text(frame)


@given(st.binary(max_size=200))
def test_decode_returns_bytes_or_one_kind_of_error(data):
    try:
        found = decode(data)
    except FrameError:
        return
    assert found
    assert decode(found.hex()) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tinylora:", "is empty"),
        ("ab+/cdefghijklmnop", r"has b'\+'"),
        ("abcde", "cut on its way"),
        ("zzzzzzzzzzzzzzzzzzzzzh", "cut on its way"),  # bits that no encoder writes
        ("A" * (TEXT_CHARACTERS + 1), "more than"),
    ],
)
def test_what_is_no_text(text, message):
    with pytest.raises(FrameError, match=message):
        decode(text)


def test_short_text_needs_the_scheme():
    assert not is_text(b"0.5,0.25")
    assert not is_text(b"abcdef")
    assert is_text(b"tinylora:abcdef")
