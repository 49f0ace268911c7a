"""The harness of pictures of QR codes."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from functools import cache
from random import Random

import segno
from harness import Harness
from mutations import damaged, number
from PIL import Image
from wire_readers import BASIS, VECTORS

from tinylora_edge.cli.shared import qr_image

_PNG = b"\x89PNG\r\n\x1a\n"


@cache
def _codes() -> list[bytes]:
    """A vector as text, as bytes, and something else; two codes beside each other; as PNG and as JPEG."""
    frame = VECTORS[1].to_bytes(BASIS)
    out = []
    for content in (qr_image.text.encode(frame, scheme=True), frame, b"https://example.org"):
        picture = io.BytesIO()
        segno.make_qr(content, error="L", mode="byte").save(picture, kind="png", scale=2)
        out.append(picture.getvalue())
    one = Image.open(io.BytesIO(out[0])).convert("L")
    two = Image.new("L", (2 * one.width, one.height), 255)
    two.paste(one, (0, 0))
    two.paste(one, (one.width, 0))
    for image, kind in ((two, "PNG"), (one, "JPEG"), (one.convert("RGBA"), "PNG"), (one.convert("P"), "PNG")):
        picture = io.BytesIO()
        image.save(picture, kind)
        out.append(picture.getvalue())
    return out


@cache
def _bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 1)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, out = len(_PNG), []
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        out.append((kind, data[at + 8 : at + 8 + size]))
        at += 12 + size
    return out


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _make(random: Random) -> bytes:
    data = random.choice(_codes())
    if not data.startswith(_PNG):
        return data if random.random() < 0.3 else damaged(data, random, 1 << 16)
    chunks = _chunks(data)
    for _ in range(random.choice((0, 1, 1, 2))):
        at = random.randrange(len(chunks))
        kind, content = chunks[at]
        action = random.randrange(6)
        if action == 0:
            del chunks[at]
        elif action == 1:
            chunks.insert(at, chunks[at])
        elif action == 2 and kind == b"IDAT":
            with suppress(zlib.error):  # damaged before
                chunks[at] = (kind, zlib.compress(damaged(zlib.decompress(content), random, 1 << 20), 1))
        elif action == 3 and kind == b"IHDR" and len(content) == 13:
            head = bytearray(content)
            if random.random() < 0.5:
                struct.pack_into(">I", head, random.choice((0, 4)), number(random) % (1 << 32))
            else:
                head[8 + random.randrange(5)] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[at] = (kind, bytes(head))
        elif action == 4:
            text = _bomb(random.choice((10, 1 << 20, 1 << 24)))
            chunks.insert(1, (random.choice((b"zTXt", b"iCCP", b"tEXt", b"eXIf", b"fcTL")), b"a\0\0" + text))
        else:
            chunks[at] = (kind, damaged(content, random, 1 << 16))
        if not chunks:
            break
    return _png(chunks)


def _mend(data: bytes) -> bytes:
    return _png(_chunks(data)) if data.startswith(_PNG) else data


def _read(data: bytes) -> None:
    qr_image.is_picture(data)
    assert isinstance(qr_image.read(data), bytes)


HARNESSES = [Harness("qr", _make, _read, _mend)]
