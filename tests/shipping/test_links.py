"""Links: sizes against the encoders themselves, and how many messages a frame takes."""

from __future__ import annotations

import io
import sys

import pytest
import segno

from tinylora_edge import FrameError, MissingExtraError
from tinylora_edge.shipping.links import LINKS, qr_code
from tinylora_edge.wire import text


@pytest.mark.parametrize("link", [link for link in LINKS if link.startswith("QR")])
def test_qr_codes_hold_what_they_say(link):
    version, most = int(link.split()[2].partition("-")[0]), LINKS[link]

    def code(size):
        data = bytes(range(256)) * 12
        payload = data[:size] if link.endswith("bytes") else text.encode(data[:size], scheme=True)
        return segno.make_qr(payload, error="L", boost_error=False, mode="byte", version=version)

    assert code(most).version == version
    with pytest.raises(segno.DataOverflowError):
        code(most + 1)


def test_what_is_drawn_is_what_the_table_says():
    """`QR code 4-L, text: 51`: a frame of 51 bytes is drawn as that, and a reader finds its text."""
    zxingcpp, image = pytest.importorskip("zxingcpp"), pytest.importorskip("PIL.Image")
    data, out = bytes(range(51)), io.BytesIO()
    code = qr_code(data)
    assert code.designator == "4-L"
    code.save(out, kind="png", scale=4)
    with pytest.raises(FrameError, match=r"2,209 bytes are too many for a QR code, which takes 2,208"):
        qr_code(bytes(2209))
    (found,) = zxingcpp.read_barcodes(image.open(out))
    assert (bytes(found.bytes), found.ec_level) == (text.encode(data, scheme=True).encode(), "L")


def test_texts_hold_what_they_say():
    for name, characters in {"SMS, text": 160, "APRS message": 67, "DNS TXT string": 255}.items():
        size = LINKS[name]
        assert len(text.encode(bytes(size))) <= characters < len(text.encode(bytes(size + 1)))


def test_the_package_that_draws_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tinylora-edge\[ship\]"'):
        qr_code(b"frame")
