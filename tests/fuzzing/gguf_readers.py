"""Harnesses of GGUF files: the side tensors of a basis, a stock LoRA, and a base."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import support
from harness import Harness, folder
from mutations import changed, number

from tinylora_edge import Basis, load_basis, save_basis
from tinylora_edge.formats import side_tensors
from tinylora_edge.formats.bundle import Bundle, load_bundle
from tinylora_edge.formats.gguf import GGUFFile

# GGUF, written anew: whatever the package's writer would refuse can be said here.

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _F16 = 0, 1

Pair = tuple[str, int, Any]
Entry = tuple[str, list[int], int, bytes]


def _string(value: Any) -> bytes:
    data = (value if isinstance(value, str) else "?").encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    if kind == _ARRAY:
        item, values = value
        return struct.pack("<IQ", item, len(values)) + b"".join(_value(item, each) for each in values)
    layout = _SCALARS.get(kind, "I")
    if layout in "fd":
        return struct.pack("<d", float(value))[: struct.calcsize(layout)]
    width = struct.calcsize(layout)
    return (int(value) % (1 << 8 * width)).to_bytes(width, "little")


def gguf_image(pairs: list[Pair], entries: list[Entry], offsets: dict[int, int] | None = None) -> bytes:
    """Return a GGUF image of metadata (key, type, value) and tensors (name, dimensions, type, data)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs))
    for key, kind, value in pairs:
        head += _string(key) + struct.pack("<I", kind) + _value(kind, value)
    data = b""
    for position, (name, dims, kind, content) in enumerate(entries):
        offset = (offsets or {}).get(position, len(data))
        head += _string(name) + struct.pack("<I", len(dims))
        head += b"".join((dim % (1 << 64)).to_bytes(8, "little") for dim in dims)
        head += struct.pack("<IQ", kind % (1 << 32), offset % (1 << 64))
        data += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + data


def _parts(image: bytes) -> tuple[list[Pair], list[Entry]]:
    """Return what an image of the package's own writer holds."""
    file, pairs = GGUFFile(image), list[Pair]()
    for key in file:
        value = file.get(key)
        if isinstance(value, str):
            pairs.append((key, _STRING, value))
        elif isinstance(value, list):
            pairs.append((key, _ARRAY, (_STRING, value)))
        elif isinstance(value, np.ndarray):
            pairs.append((key, _ARRAY, (6 if value.dtype.kind == "f" else 4, value.tolist())))
        else:
            pairs.append((key, 10 if key.endswith("seed") else 4, value))
    entries = [
        (t.name, [*reversed(t.shape)], int(t.type), file.data(t).tobytes()) for t in file.tensors.values()
    ]
    return pairs, entries


def _altered(pairs: list[Pair], entries: list[Entry], random: Random) -> bytes:
    """Return an image with some of its parts changed."""
    pairs, entries, offsets = list(pairs), list(entries), dict[int, int]()
    for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
        kind = random.randrange(10)
        if kind < 6 and pairs:
            at = random.randrange(len(pairs))
            key, type_, value = pairs[at]
            if kind == 0:
                del pairs[at]
            elif kind == 1:
                pairs.append(pairs[at])
            elif kind == 2 and type_ in _SCALARS:
                pairs[at] = (key, random.choice([*_SCALARS, 4, 10, 99]), number(random))
            elif type_ == _ARRAY:
                item, values = value
                values = changed(values, random, 1)
                if not isinstance(values, list) or any(isinstance(each, list | dict) for each in values):
                    values = []
                if item == _STRING or all(
                    type(each) in (int, float) and abs(each) < 1e308 for each in values
                ):
                    pairs[at] = (key, _ARRAY, (item, values))
            elif type_ == _STRING:
                pairs[at] = (key, _STRING, changed(value, random, 1))
            else:
                pairs[at] = (key, type_, number(random))
        elif entries:
            at = random.randrange(len(entries))
            name, dims, type_, data = entries[at]
            if kind == 6:
                dims = changed(dims, random, 1)
                dims = [dim if type(dim) is int else 3 for dim in dims] if isinstance(dims, list) else []
            elif kind == 7:
                type_ = random.choice((_F32, _F16, 2, 8, 14, 26, 30, 99, number(random)))
            elif kind == 8:
                offsets[at] = random.choice((0, 32, number(random)))
            else:
                strange = np.array([random.choice((np.nan, np.inf, 0, 1e38, 1e-45))], "<f4").tobytes()
                data = strange + data[4:] if random.random() < 0.6 else data[: random.randrange(64)]
            entries[at] = (name, dims, type_, data)
            if random.random() < 0.1:
                del entries[at]
    return gguf_image(pairs, entries, offsets)


@cache
def bases() -> list[Basis]:
    """Bases of every kind: drawn and learned projections, experts, names and a prior."""
    plain = support.random_basis()
    return [
        replace(plain, base_fingerprints=("ab" * 32,)),
        support.random_basis(experts=2, factor_dtype=np.float16, u=2, scheme="tiled", groups=3),
        support.random_basis(explicit=True),
        *list(support.learned_forms(plain, 6).values())[:2],
    ]


@cache
def _basis_parts() -> list[tuple[list[Pair], list[Entry]]]:
    path, out = folder() / "valid.gguf", []
    for basis in bases():
        save_basis(basis, path)
        out.append(_parts(path.read_bytes()))
    path.unlink()
    return out


def _make_basis(random: Random) -> bytes:
    return _mend_basis(_altered(*random.choice(_basis_parts()), random))


def _mend_basis(data: bytes) -> bytes:
    """State the digest that the content gives."""
    try:
        file = GGUFFile(data)
        stated = file.get("tinylora.digest")
        found = side_tensors._read(file).digest
    except Exception:
        return data
    if not isinstance(stated, str) or len(stated.encode()) != len(found):
        return data
    return data.replace(stated.encode(), found.encode(), 1)


def _read_basis(data: bytes) -> None:
    path = folder() / "basis.gguf"
    path.write_bytes(data)
    basis = load_basis(path)
    assert basis.size == basis.groups * basis.u
    v = np.full((basis.groups, basis.u), 0.5, np.float32)
    with np.errstate(all="ignore"):
        assert basis.R(v).shape == (len(basis.modules), basis.rank, basis.rank)
    assert repr(basis)
    arrays = (*basis.a, *basis.b, *basis.p)
    if len(data) < 1 << 14 and all(np.isfinite(array).all() for array in arrays):  # Python may change a NaN
        assert basis.digest == support.digest(basis)
    if basis.prior is not None:
        assert basis.whitening is not None


# A base, and a LoRA for it.


@cache
def _base() -> Path:
    path = folder() / "base.gguf"
    pairs: list[Pair] = [("general.architecture", _STRING, "llama"), ("llama.block_count", 4, 1)]
    entries: list[Entry] = [
        (f"blk.0.{kind}.weight", [8, 6], _F32, bytes(4 * 48)) for kind in ("attn_q", "ffn_down")
    ]
    path.write_bytes(gguf_image(pairs, entries))
    return path


def _make_base(random: Random) -> bytes:
    return _altered(*_parts(_base().read_bytes()), random)


@cache
def _bundle() -> Bundle:
    """A bundle around the base. Its basis, which stays what it is, is read once."""
    home = folder() / "bundle"
    home.mkdir()
    (home / "base.gguf").touch()
    basis = support.random_basis(blocks=1, kinds=("attn_q",), groups=1, n_in=8, n_out=6)
    found = side_tensors.fingerprint(GGUFFile(_base()), basis.modules)
    save_basis(replace(basis, base_fingerprints=(found,)), home / "basis.gguf")
    return load_bundle(home)


def _read_base(data: bytes) -> None:
    """A base that was replaced by something else."""
    _bundle().base.write_bytes(data)
    _bundle().check_base()


HARNESSES = [
    Harness("basis", _make_basis, _read_basis, _mend_basis),
    Harness("base", _make_base, _read_base),
]
