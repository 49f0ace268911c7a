"""The harness of ONNX graphs."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

from gguf_readers import bases
from harness import Harness, folder
from mutations import as_json, changed, number

from tinylora_edge import Bases
from tinylora_edge.formats.bundle import Bundle
from tinylora_edge.formats.onnx_graph import VERSION, MetadataKey, read_onnx
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.runtime.onnx.bundle import checked_graph, find_bundle, weights_fingerprint

# ONNX graphs: protocol buffers as (field, integer, bytes or fields).

Field = tuple[int, "int | bytes | list[Field]"]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def protobuf(parts: list[Field]) -> bytes:
    """Return the wire form of fields."""
    out = b""
    for tag, value in parts:
        if isinstance(value, int):
            out += _varint(tag << 3) + _varint(value % (1 << 64))
        else:
            content = value if isinstance(value, bytes) else protobuf(value)
            out += _varint(tag << 3 | 2) + _varint(len(content)) + content
    return out


_KEPT: list[Field] = [(5, [(8, b"w"), (9, bytes(64))]), (5, [(8, b"x"), (9, bytes(32))])]


@cache
def _weights() -> str:
    """The fingerprint of the graph's weights, all zeros, wherever they lie."""
    path = folder() / "whole.onnx"
    path.write_bytes(protobuf([(7, [(11, [(1, b"x")]), *_KEPT])]))
    factors = bases()[0].factors
    return weights_fingerprint(
        read_onnx(path), factors.architecture, factors.modules, json.dumps(_list_of_weights())
    )


def _list_of_weights() -> list[Any]:
    tensors = [["x", 1, 32], *[["w", 1, 64]] * (len(bases()[0].factors.modules) - 1)]
    return [[{"k": 8, "n": 6, "tensors": [tensor]}] for tensor in tensors]


def _graph(random: Random) -> list[Field]:
    weights = _list_of_weights()
    if random.random() < 0.6:
        weights = changed(weights, random)
    metadata = {
        MetadataKey.VERSION: random.choice((VERSION,) * 9 + ("1",)),
        MetadataKey.FACTORS: bases()[0].factors.digest,
        MetadataKey.FINGERPRINT: _weights(),
        MetadataKey.WEIGHTS: as_json(weights).decode("ascii", "replace"),
        MetadataKey.FLAVOUR: "default",
    }
    place: list[list[Field]] = [
        [(1, key.encode()), (2, said.encode())]
        for key, said in (("location", "data.bin"), ("offset", "0"), ("length", "32"))
    ]
    if random.random() < 0.4:
        place = [
            [(1, b"location"), (2, random.choice((b"", b"\0", b"..", b"/etc/passwd", b"a/" * 600, b".")))]
        ]
    if random.random() < 0.3:
        place.append([(1, random.choice((b"offset", b"length"))), (2, str(number(random)).encode())])
    graph: list[Field] = [
        (11, [(1, b"input_ids")]),
        (11, [(1, b"tinylora_r")]),
        (5, [(8, b"tinylora_r"), (9, bytes(12))]),
        (5, [(8, b"w"), (9, bytes(64))]),
        (5, [(8, b"x"), *((13, entry) for entry in place)]),
    ]
    entries: list[Field] = [(14, [(1, k.encode()), (2, v.encode())]) for k, v in metadata.items()]
    return [(1, 9), (8, [(1, b""), (2, 21)]), (7, graph), *entries]


def _shaken(parts: list[Field], random: Random) -> list[Field]:
    parts = list(parts)
    at = random.randrange(len(parts)) if parts else 0
    kind = random.randrange(7)
    if not parts or kind == 0:
        parts.append((random.choice((0, 1, 5, 7, 14, 99)), number(random)))
    elif kind == 1:
        del parts[at]
    elif kind == 2:
        parts.insert(at, parts[at])
    elif kind == 3:
        parts[at] = (parts[at][0], random.choice((number(random), b"", b"\xff", random.randbytes(8), [])))
    elif isinstance(inner := parts[at][1], list):
        parts[at] = (parts[at][0], _shaken(inner, random))
    return parts


def _make_onnx(random: Random) -> bytes:
    parts = _graph(random)
    for _ in range(random.choice((0, 0, 1, 2, 4))):
        parts = _shaken(parts, random)
    return protobuf(parts)


@cache
def _bundle() -> Bundle:
    """A bundle around the graph. Its basis, which stays what it is, is read once."""
    home = folder() / "graph"
    home.mkdir()
    (home / "data.bin").write_bytes(bytes(32))
    (home / "model.onnx").touch()
    save_bases(Bases(bases()[0].factors, fingerprints=(_weights(),)), home / "basis.gguf")
    return find_bundle(home)


def _read_graph(data: bytes) -> None:
    bundle = _bundle()
    assert bundle.onnx is not None
    model = bundle.onnx / "model.onnx"
    model.write_bytes(data)
    try:
        checked_graph(bundle)
    finally:
        read_onnx(model).check_data()


HARNESSES = [Harness("onnx", _make_onnx, _read_graph)]
