"""What wrote the model `tall` of bases.json: digests, frames and R by docs/FORMAT.md, with none of our code.

`python tests/golden/tall.py` prints it.
"""

import hashlib
import json
import struct
import zlib

RANK, OUTPUTS = 2, 5
MODULES = [
    ("blk.0.attn_q.weight", [RANK, 4], [6, OUTPUTS]),
    ("blk.0.ffn_down_exps.weight", [3, RANK, 6], [3, 7, OUTPUTS]),
    ("blk.1.attn_v.weight", [RANK, 4], [5, OUTPUTS]),
]


def text(value: str) -> bytes:
    """text(s) of the page."""
    return struct.pack("<I", len(value)) + value.encode()


def array(number: int, which: int, shape: list[int]) -> bytes:
    """array(A) or array(B) of a module, of the entries that bases.json describes."""
    count = 1
    for length in shape:
        count *= length
    entries = [((7 * e + 13 * number + 5 * which) % 31 - 15) / 16 for e in range(count)]
    head = struct.pack("<II", 4, len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
    return head + struct.pack(f"<{count}f", *entries)


def factors() -> bytes:
    """The factors' digest."""
    head = b"tinylora factors 2\n" + text("llama") + text("left") + struct.pack("<II", RANK, len(MODULES))
    parts = [text(name) + array(m, 0, a) + array(m, 1, b) for m, (name, a, b) in enumerate(MODULES)]
    return hashlib.sha256(head + b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def basis(outputs: int, inputs: int) -> dict[str, object]:
    """Entries of a shape: their basis, a frame of it, and its R."""
    square = outputs == inputs
    descriptor = f"entries rank={inputs}" if square else f"entries out={outputs} in={inputs}"
    digest = hashlib.sha256(b"tinylora basis 2\n" + factors() + descriptor.encode()).digest()
    n = len(MODULES) * outputs * inputs
    codes = [37 * i % 255 - 127 for i in range(n)]
    (scale,) = struct.unpack("<f", b"\0" + bytes.fromhex("d7233c"))
    payload = bytes.fromhex("d7233c") + struct.pack(f"<{n}b", *codes) + bytes(n % 2 == 0)
    body = b"\x23" + digest[:4] + struct.pack("<H", 7) + payload
    message = hashlib.sha256(b"tinylora stream 2\n").digest() + digest + body
    return {
        "descriptor": descriptor,
        "n": n,
        "digest": digest.hex(),
        "frame_hex": (body + struct.pack("<I", zlib.crc32(message))).hex(),
        "r_hex_le_f32": struct.pack(f"<{n}f", *(scale * code + 0 for code in codes)).hex(),
    }


def model() -> dict[str, object]:
    """The model, as bases.json has it: square shapes first, then the others by outputs and inputs."""
    shapes = [(p, q) for p in range(1, OUTPUTS + 1) for q in range(1, RANK + 1)]
    ordered = [shape for shape in shapes if shape[0] == shape[1]] + [s for s in shapes if s[0] != s[1]]
    return {
        "name": "tall",
        "architecture": "llama",
        "rank": RANK,
        "dtype": "f32",
        "modules": [[name, a, b] for name, a, b in MODULES],
        "projections": [],
        "factors": factors().hex(),
        "bases": [basis(*shape) for shape in ordered],
    }


if __name__ == "__main__":
    print(json.dumps(model(), indent=1))
