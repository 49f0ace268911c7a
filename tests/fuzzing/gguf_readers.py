"""Harnesses of GGUF files: the side tensors of a basis, a stock LoRA, and a base."""

from __future__ import annotations

import hashlib
import re
import struct
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import support
from gguf_images import image, pair, tensor, text
from harness import Harness, folder
from mutations import changed, number

from tinylora_edge import Bases, Basis, NonFiniteError, Projection
from tinylora_edge.formats import side_tensors
from tinylora_edge.formats.bundle import Bundle, load_bundle
from tinylora_edge.formats.gguf import GGUFFile

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _F16 = 0, 1

Pair = tuple[str, int, Any]
Entry = tuple[str, list[int], int, bytes]


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return text(value if isinstance(value, str) else "?")
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
    tensors, data = [], b""
    for position, (name, dims, kind, content) in enumerate(entries):
        offset = (offsets or {}).get(position, len(data))
        dims = [dim % (1 << 64) for dim in dims]
        tensors.append(tensor(name, dims, kind % (1 << 32), offset % (1 << 64)))
        data += content + bytes(-len(content) % 32)
    return image([pair(key, kind, _value(kind, value)) for key, kind, value in pairs], tensors, data=data)


def _parts(image: bytes) -> tuple[list[Pair], list[Entry]]:
    """Return what an image of the package's own writer holds."""
    file, pairs = GGUFFile(image), list[Pair]()
    for key in file:
        value = file.get(key)
        if isinstance(value, str):
            pairs.append((key, _STRING, value))
        elif isinstance(value, list):
            pairs.append((key, _ARRAY, (_STRING, value)))
        else:
            pairs.append((key, 4, value))
    tensors = file.tensors.values()
    entries = [(t.name, [*reversed(t.shape)], int(t.type), file.data(t).tobytes()) for t in tensors]
    return pairs, entries


def _altered(pairs: list[Pair], entries: list[Entry], random: Random) -> bytes:
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
                if item == _STRING or all(type(n) in (int, float) and abs(n) < 1e308 for n in values):
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
def bases() -> list[Bases]:
    """Bases of every kind: stored and named projections, priors, experts, deployed forms."""
    plain = support.random_factors()
    experts = support.random_factors(experts=2, factor_dtype=np.float16, rank=3, outputs=4)
    named = [Projection.random(experts.modules, 4, rank) for rank in (3, 1)]
    learned = [support.learned(plain, 5), support.learned(plain, 2, prior=False)]
    return [
        Bases(plain, (), ("ab" * 32,)),
        Bases(plain, tuple(learned)),
        Bases(experts, tuple(named)),
        Bases(plain, (learned[0], Projection.random(plain.modules, 1, 1))),
        Bases(support.random_factors(1, kinds=("attn_q",), rank=1)),
    ]


@cache
def _basis_parts() -> list[tuple[list[Pair], list[Entry]]]:
    path, out = folder() / "valid.gguf", []
    for each in bases():
        side_tensors.save_bases(each, path)
        out.append(_parts(path.read_bytes()))
    path.unlink()
    return out


def _make_basis(random: Random) -> bytes:
    """What is declared, changed; or descriptors alone, which no small change makes."""
    pairs, entries = random.choice(_basis_parts())
    if random.random() < 0.3:
        listed = [random.choice(_DESCRIPTORS) for _ in range(random.choice((1, 1, 2, 65)))]
        pairs = [each for each in pairs if each[0] != "tinylora.projections"]
        pairs.append(("tinylora.projections", _ARRAY, (_STRING, listed)))
    return _mend_basis(_altered(pairs, entries, random))


_RANDOM = "random rank=2 seed=42 groups=2 u=1 tying=tiled"
_DESCRIPTORS = [
    _RANDOM,
    *(_RANDOM.replace("seed=42", f"seed={seed}") for seed in ("043", "18446744073709551615", 1 << 64, "x")),
    *(_RANDOM.replace("rank=2", f"rank={rank}") for rank in (0, 1, 3, 256, 257, 999_999_999)),
    *(_RANDOM.replace("u=1", f"u={u}") for u in (0, 2, 125_000, 125_001, 999_999_999, 1 << 40)),
    *(_RANDOM.replace("groups=2", f"groups={groups}") for groups in (0, 1, 6, 7, 1 << 40)),
    *(_RANDOM.replace("tiled", tying) for tying in ("full", "structured", "")),
    *("entries rank=2", "learned rank=2 " + "0" * 64, "learned rank=3 " + "0" * 64, "learned ", ""),
]


def _mend_basis(data: bytes) -> bytes:
    """State the digests that the content gives: of the factors, and of stored projections."""
    try:
        file = GGUFFile(data)
        listed = file.value("tinylora.projections", list, [])
        for i, each in enumerate(listed):
            if re.fullmatch("learned rank=[0-9]+ [0-9a-f]{64}", each) and f"tinylora_p.{i}" in file.tensors:
                found = hashlib.sha256(file.data(file.tensors[f"tinylora_p.{i}"])).hexdigest()
                data = data.replace(each[-64:].encode(), found.encode())
        stated = file.value("tinylora.factors", str)
        found = side_tensors._read(GGUFFile(data)).factors.digest
    except Exception:
        return data
    return data.replace(stated.encode(), found.encode(), 1) if len(stated.encode()) == len(found) else data


def _read_basis(data: bytes) -> None:
    path = folder() / "basis.gguf"
    path.write_bytes(data)
    found = side_tensors.load_bases(path)
    factors = found.factors
    assert repr(found)
    assert found.most >= max(basis.size for basis in _some(found))
    for basis in _some(found):
        assert found[basis.id] is basis
        if basis.size * len(factors.modules) > 1 << 16:  # which is legal, and slow
            continue
        try:
            r = basis.R(np.full(basis.size, 0.5, np.float32))
        except NonFiniteError:
            continue
        assert r.shape == (len(factors.modules), *basis.shape)
        assert basis.projection.prior is None or basis.projection.whitening is not None
        if len(data) < 1 << 14 and all(np.isfinite(array).all() for array in (*factors.a, *factors.b)):
            assert basis.digest == support.digest(factors, basis.projection.descriptor)


def _some(found: Bases) -> list[Basis]:
    ids = list(found)
    first = found.factors.rank
    return [found[each] for each in {ids[0], ids[first - 1], *ids[first : first + 3], ids[-1]}]


@cache
def _base() -> Path:
    path = folder() / "base.gguf"
    pairs: list[Pair] = [("general.architecture", _STRING, "llama"), ("llama.block_count", 4, 1)]
    names = "blk.0.attn_q.weight", "blk.0.ffn_down.weight"
    entries: list[Entry] = [(name, [8, 6], _F32, bytes(4 * 48)) for name in names]
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
    factors = support.random_factors(1, kinds=("attn_q",), n_in=8, n_out=6)
    found = side_tensors.fingerprint(GGUFFile(_base()), factors.modules)
    side_tensors.save_bases(Bases(factors, (), (found,)), home / "basis.gguf")
    return load_bundle(home)


def _read_base(data: bytes) -> None:
    """A base that was replaced by something else."""
    _bundle().base.write_bytes(data)
    _bundle().check_base()


HARNESSES = [Harness("basis", _make_basis, _read_basis, _mend_basis), Harness("base", _make_base, _read_base)]
