"""What wrote low_bits.json: frames of versions 4 and 5 by docs/FORMAT.md, with struct and none of our code.

`python tests/golden/low_bits.py` prints the file.
"""

import hashlib
import hmac
import json
import struct
import zlib

DIGEST = bytes.fromhex("50c95af547766fbfd3f0694a303ad8d6c439c098935e1fba7fad64031a1f782c")
KEY = bytes(31) + b"\1"
SCALES = bytes.fromhex("5c00016207 5f50615d08 7d6f0066")
"""A byte is the upper bits of a float16: .09375, 0, the smallest one, .15625, the largest subnormal, ..."""


def entry(
    bits: int, modules: int, outputs: int, rank: int, auth: str, last_day: int | None
) -> dict[str, object]:
    """A frame, and its values."""
    places = [(m * rank + b, a) for m in range(modules) for a in range(outputs) for b in range(rank)]
    half = 1 << bits - 1  # the first row has the values next to zero: there is one way to write a column
    codes = [(7 * i + 5 * a * a + 3) % (2 * half) if a else half - i % 2 for i, a in places]
    codes = [code if SCALES[i] else 0 for (i, _), code in zip(places, codes, strict=True)]
    scales = SCALES[: modules * rank]
    packed = sum(code << i * bits for i, code in enumerate(codes))
    payload = scales + packed.to_bytes((len(codes) * bits + 7) // 8, "little")
    levels = [code - 2 ** (bits - 1) + 0.5 for code in codes]
    halves = struct.unpack(f"<{len(scales)}e", struct.pack(f"<{len(scales)}H", *(s << 7 for s in scales)))
    values = [halves[i] * level + 0 for (i, _), level in zip(places, levels, strict=True)]  # no -0
    kind, version, stream = {"crc32": 0, "hmac": 1, "ed25519": 2}[auth], 4, ""
    header = DIGEST[:4] + struct.pack("<H", 7)
    if last_day is not None:
        version, stream, header = 5, "alice", header + struct.pack("<H", last_day)
    body = bytes([version << 4 | kind << 2 | 3, bits]) + header + payload
    message = hashlib.sha256(b"tinylora stream 2\n" + stream.encode()).digest() + DIGEST + body
    return {
        "n": len(codes),
        "modules": modules,
        "outputs": outputs,
        "rank": rank,
        "dtype": f"q{bits}",
        "auth": auth,
        "stream": stream,
        "last_day": last_day,
        "sequence": 7,
        "digest_hex": DIGEST.hex(),
        "key_hex": {"crc32": None, "hmac": KEY.hex(), "ed25519": bytes(range(32)).hex()}[auth],
        "values_hex_le_f32": struct.pack(f"<{len(values)}f", *values).hex(),
        "frame_hex": (body + tag(auth, message)).hex(),
    }


def tag(auth: str, message: bytes) -> bytes:
    """The tag of a message."""
    if auth == "crc32":
        return struct.pack("<I", zlib.crc32(message))
    if auth == "hmac":
        return hmac.digest(KEY, message, "sha256")[:8]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes(range(32))).sign(message)


def frames() -> list[dict[str, object]]:
    """All of them."""
    ends = (("crc32", None), ("hmac", 400), ("ed25519", None))
    shapes = ((5, 2, 2), (7, 3, 2))
    return [entry(bits, *shape, *end) for bits in (2, 4) for shape in shapes for end in ends]


if __name__ == "__main__":
    print(json.dumps({"frames": frames()}, indent=1))
