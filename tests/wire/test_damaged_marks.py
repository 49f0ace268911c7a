"""State files whose checksum is right and whose content is none."""

from __future__ import annotations

import hashlib

import pytest

from tinylora_edge.wire.sequences import decode


@pytest.mark.parametrize("value", ['"65536:"', '"-1:"', '"1:ab"', '"x"'])
def test_what_is_no_sequence_is_damage(value):
    body = f'{{"digest": {{"key": {{"stream": {value}}}}}}}\n'.encode()
    with pytest.raises(ValueError, match="where a sequence should be"):
        decode(b"tinylora state 2 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        decode(b"tinylora state 2 " + b"0" * 64 + b"\n" + body)
