"""Links: sizes against the encoders themselves, and which frame fits."""

from __future__ import annotations

import io

import pytest
import segno
import support

from tinylora_edge import Bases, Ed25519Signer, Hmac, MicroVector
from tinylora_edge.shipping.links import LINKS, fitting, frame_sizes, messages, qr_code
from tinylora_edge.wire import text

BY_NAME = {link.name: link for link in LINKS}


@pytest.mark.parametrize("values", [13, 210, 13_440])
def test_sizes_are_those_of_frames(values):
    bases = Bases(support.random_factors(blocks=70, rank=8))
    basis = bases.basis(rank=8) if values == bases.most else bases.basis(numbers=values)
    keys = {"CRC-32": "crc32", "HMAC": Hmac(b"k" * 32), "Ed25519": Ed25519Signer(b"k" * 32)}
    for found in frame_sizes(values):
        data = MicroVector.zeros(basis, found.dtype).to_bytes(basis, keys[found.tag])
        assert len(data) == found.size


@pytest.mark.parametrize(
    "link", [link for link in LINKS if link.name.startswith("QR")], ids=lambda it: it.name
)
def test_qr_codes_hold_what_they_say(link):
    version = int(link.name.split()[2].partition("-")[0])

    def code(size):
        data = bytes(range(256)) * 12
        payload = data[:size] if link.name.endswith("bytes") else text.encode(data[:size], scheme=True)
        return segno.make_qr(payload, error="L", boost_error=False, mode="byte", version=version)

    assert code(link.size).version == version
    with pytest.raises(segno.DataOverflowError):
        code(link.size + 1)


def test_what_is_drawn_is_what_the_table_says():
    """`QR code 4-L, text: 51`: a frame of 51 bytes is drawn as that, and a reader finds its text."""
    zxingcpp, image = pytest.importorskip("zxingcpp"), pytest.importorskip("PIL.Image")
    data, out = bytes(range(51)), io.BytesIO()
    code = qr_code(data, "")
    assert code.designator == "4-L"
    code.save(out, kind="png", scale=4)
    (found,) = zxingcpp.read_barcodes(image.open(out))
    assert (bytes(found.bytes), found.ec_level) == (text.encode(data, scheme=True).encode(), "L")


def test_texts_hold_what_they_say():
    for name, characters in {"SMS, text": 160, "APRS message": 67, "DNS TXT string": 255}.items():
        size = BY_NAME[name].size
        assert len(text.encode(bytes(size))) <= characters < len(text.encode(bytes(size + 1)))


def test_what_fits_where():
    def fits(name):
        return [(found.dtype, found.tag) for found in fitting(BY_NAME[name], 13)]

    assert fits("Sigfox up") == []
    assert fits("BLE legacy advertisement") == [("int8", "CRC-32")]
    assert ("bf16", "Ed25519") in fits("LoRaWAN EU868, DR3")
    assert len(fits("Meshtastic packet")) == 9
    assert [messages(BY_NAME["Meshtastic packet"], size) for size in (233, 234, 13_515)] == [1, 2, 59]
