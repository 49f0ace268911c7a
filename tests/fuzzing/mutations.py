"""Mutations: damage to bytes, to the values of documents and to numbers, all by a `Random`."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

NUMBERS = [0, 1, 2, 3, 7, 8, 13, 31, 32, 64, 127, 128, 255, 256, 257, 1000, 4096, 65535, 65536]
NUMBERS += [(1 << bits) - offset for bits in (20, 24, 31, 32, 40, 62, 63, 64) for offset in (1, 0)]
NUMBERS += [-1, -2, -(1 << 31), -(1 << 63)]

STRANGE: list[Any] = [
    None,
    True,
    False,
    -1,
    0.5,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**39,
    10**50,
    "",
    "\0",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "\ud800",
    "\x1b[2J",
    "é" * 40,
    "x" * 300,
    "x" * 5000,
    "NaN",
    "F32",
    [],
    {},
    [[]],
    [0],
    [-1],
    [None],
    [1 << 62, 1 << 62],
    {"": {}},
    {"a": {"b": [1, {"c": None}]}},
]


def number(random: Random) -> int:
    """Return an integer that readers stumble over, or one near to it."""
    return random.choice(NUMBERS) + random.choice((0, 0, 0, 1, -1))


def damaged(data: bytes, random: Random, most: int) -> bytes:
    """Return bytes with some damage, `most` of them at most."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(out) + 1)
        kind = random.randrange(11)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << random.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + random.randrange(1, 9)]
        elif kind == 4:
            out[at:at] = random.randbytes(random.randrange(1, 9))
        elif kind == 5:
            width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            value = number(random) % (1 << 8 * width)
            out[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 6:
            piece = out[at : at + random.randrange(1, 65)]
            out[at:at] = piece
        elif kind == 7 and random.random() < 0.05:  # a large one, made of what is there
            piece = out[at : at + random.randrange(1, 65)]
            times = random.choice((100, 1000, 10_000, 100_000))
            out[at:at] = piece * min(times, max(0, most - len(out)) // max(1, len(piece)))
        elif kind == 8:
            other = random.randrange(len(out) + 1)
            out[at : at + 16] = out[other : other + 16]
        elif kind == 9:
            out += random.randbytes(random.randrange(1, 33))
        elif kind == 10:
            out[at : at + 4] = random.randbytes(len(out[at : at + 4]))
    return bytes(out[:most])


def changed(value: Any, random: Random, times: int | None = None) -> Any:
    """Return a document's value with some parts replaced, removed, added or wrapped; the value stays."""
    try:
        out = copy.deepcopy(value)
    except RecursionError:  # it is deep already
        return value
    for _ in range(random.choice((0, 1, 1, 1, 2, 4)) if times is None else times):
        try:
            out = _changed(out, random)
        except RecursionError:  # it is deep already
            break
    return out


def _changed(value: Any, random: Random) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        kind = random.randrange(8)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[random.choice(("", "\0", "x" * 300, "__proto__", key + "x"))] = value.pop(key)
        elif kind == 2:
            value[f"{key}2"] = copy.deepcopy(value[key])
        else:
            value[key] = _changed(value[key], random)
        return value
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        kind = random.randrange(8)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.insert(at, copy.deepcopy(value[at]))
        elif kind == 2 and random.random() < 0.2 and isinstance(value[at], int | float | bool | None):
            value[at:at] = value[at : at + 1] * 1000
        else:
            value[at] = _changed(value[at], random)
        return value
    if type(value) is int and random.random() < 0.5:
        return number(random)
    if isinstance(value, str) and random.random() < 0.3:
        return damaged(value.encode("utf-8", "surrogatepass"), random, 4096).decode("latin-1")
    if random.random() < 0.02:
        deep: Any = value
        for _ in range(random.choice((63, 64, 65, 2000))):
            deep = [deep]
        return deep if random.random() < 0.5 else [0] * 10_000
    return copy.deepcopy(random.choice(STRANGE))


def as_json(value: Any) -> bytes:
    """Return the JSON of a value, however deep; what UTF-8 cannot carry goes in as an escape, or as it is."""
    import json

    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000
