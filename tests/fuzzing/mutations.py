"""Mutations: damage to bytes, to the values of documents and to numbers, all by a `Random`."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any, Literal

NUMBERS = [0, 1, 2, 3, 7, 8, 13, 31, 32, 64, 127, 128, 255, 256, 257, 1000, 4096, 65535, 65536]
NUMBERS += [(1 << bits) - offset for bits in (20, 24, 31, 32, 40, 62, 63, 64) for offset in (1, 0)]
NUMBERS += [-1, -2, -(1 << 31), -(1 << 63)]

STRANGE: list[Any] = [None, True, False, -1, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**39, 10**50]
STRANGE += ["", "\0", "..", "../../etc/passwd", "/etc/passwd", "a/b", "\ud800", "\x1b[2J", "NaN", "F32"]
STRANGE += ["é" * 40, "x" * 300, "x" * 5000, [], {}, [[]], [0], [-1], [None], [1 << 62, 1 << 62]]
STRANGE += [{"": {}}, {"a": {"b": [1, {"c": None}]}}]


def number(random: Random) -> int:
    """Return an integer that readers stumble over, or one near to it."""
    return random.choice(NUMBERS) + random.choice((0, 0, 0, 1, -1))


def damaged(data: bytes, random: Random, most: int) -> bytes:
    """Return bytes with some damage, `most` of them at most."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(out) + 1)
        match random.randrange(11):
            case 0 if out:
                out[at % len(out)] ^= 1 << random.randrange(8)
            case 1 if out:
                out[at % len(out)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 2:
                del out[at:]
            case 3:
                del out[at : at + random.randrange(1, 9)]
            case 4:
                out[at:at] = random.randbytes(random.randrange(1, 9))
            case 5:
                width, order = random.choice((1, 2, 4, 8)), random.choice(_ORDERS)
                out[at : at + width] = (number(random) % (1 << 8 * width)).to_bytes(width, order)
            case 6:
                out[at:at] = out[at : at + random.randrange(1, 65)]
            case 7 if random.random() < 0.05:  # a large one, made of what is there
                piece = out[at : at + random.randrange(1, 65)]
                times = random.choice((100, 1000, 10_000, 100_000))
                out[at:at] = piece * min(times, max(0, most - len(out)) // max(1, len(piece)))
            case 8:
                other = random.randrange(len(out) + 1)
                out[at : at + 16] = out[other : other + 16]
            case 9:
                out += random.randbytes(random.randrange(1, 33))
            case 10:
                out[at : at + 4] = random.randbytes(len(out[at : at + 4]))
    return bytes(out[:most])


_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


def changed(value: Any, random: Random, times: int | None = None) -> Any:
    """Return a document's value with some parts replaced, removed, added or wrapped; the value stays."""
    out = value
    try:
        out = copy.deepcopy(value)
        for _ in range(random.choice((0, 1, 1, 1, 2, 4)) if times is None else times):
            out = _changed(out, random)
    except RecursionError:  # it is deep already
        pass
    return out


def _changed(value: Any, random: Random) -> Any:
    if isinstance(value, dict | list) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, kind = random.choice(keys), random.randrange(8)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, dict):
            value[random.choice(("", "\0", "x" * 300, "__proto__", f"{key}x"))] = value.pop(key)
        elif kind == 2 and isinstance(value, dict):
            value[f"{key}2"] = copy.deepcopy(value[key])
        elif kind == 1:
            value.insert(key, copy.deepcopy(value[key]))
        elif kind == 2 and random.random() < 0.2 and not isinstance(value[key], dict | list):
            value[key:key] = value[key : key + 1] * 1000
        else:
            value[key] = _changed(value[key], random)
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
    """Return the JSON of a value, however deep; what UTF-8 cannot carry goes in as an escape."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000
