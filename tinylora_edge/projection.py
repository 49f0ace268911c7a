"""The frozen random projections P, regenerated from a seed with exact integer arithmetic.

Version 1 (`irwin-hall-12/splitmix64`): every entry is the centred sum of twelve 16-bit uniforms that
splitmix64 derives from the seed, the module's name and the entry's index. The sum is close to N(0, 1)
(excess kurtosis -0.1), it is an exact multiple of 2^-16, so float32 holds it exactly, and it needs no
libm: every platform regenerates the same bits. docs/FORMAT.md has the definition and test values.
Tying is the map from modules to the rows of v that they share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import BasisError
from .modules import canonical_order, parse

IRWIN_HALL = "irwin-hall-12/splitmix64"
"""P is regenerated from the seed."""
EXPLICIT = "explicit"
"""P is stored with the factors, because it was learned, or imported from elsewhere."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LANE = np.uint64(0xFFFF)
_MEAN = 393210  # of the sum of twelve uniforms on 0..65535
_CHUNK = 1 << 16  # entries at once: their integers take two dozen times the memory of the result


def project(seed: int, module: str, u: int, rank: int) -> NDArray[np.float32]:
    """Return P of the module with a GGUF tensor name: float32 [u, rank, rank], close to N(0, 1/rank).

    Raises:
        BasisError: an argument is out of range.

    Source: docs/FORMAT.md, "Projection"; the scale is PEFT's.
    """
    if not 0 <= seed < 1 << 64:
        raise BasisError(f"projection seed {seed} is out of range: it must be from 0 to 2**64 - 1")
    if u < 1 or rank < 1:
        raise BasisError(f"rank {rank} and u {u}: both must be at least 1")
    count = u * rank * rank
    key = np.array([seed ^ _fnv1a64(module.encode())], dtype=np.uint64)
    scale = np.float32(1) / np.sqrt(np.float32(rank))
    entries = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        with np.errstate(over="ignore"):  # wrapping is the definition
            steps = np.arange(3 * start + 1, 3 * end + 1, dtype=np.uint64)
            words = _mix(_mix(key) + steps * _GOLDEN)
        lanes = sum((words >> np.uint64(shift)) & _LANE for shift in (0, 16, 32, 48))
        sums = np.asarray(lanes, dtype=np.int64).reshape(-1, 3).sum(axis=1)
        entries[start:end] = ((sums - _MEAN) / 65536).astype(np.float32) * scale
    return entries.reshape(u, rank, rank)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _fnv1a64(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


SCHEMES: tuple[str, ...] = ("full", "structured", "tiled")
"""The schemes that `tie` knows. A basis may also carry any other map, as scheme `custom`."""


def tie(modules: Sequence[str], scheme: str, groups: int) -> NDArray[np.int32]:
    """Return the group of every module: int32 [M], values 0 .. groups-1, each used at least once.

    Args:
        modules: names in canonical order.
        scheme: `tiled` (neighbours in depth share a row), `structured` (a kind's modules share the rows of
            that kind, tiled over depth), or `full` (one row for all).
        groups: G, the number of rows of v; `full` takes 1.

    Raises:
        BasisError: an unknown scheme, or a number of groups that the scheme cannot make.
    """
    count = len(modules)
    if scheme not in SCHEMES:
        raise BasisError(f"unknown tying scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if list(modules) != canonical_order(modules):
        raise BasisError("the modules are not in canonical order: sort them with modules.canonical_order")
    if not 1 <= groups <= count:
        raise BasisError(f"{groups} groups for {count} modules: choose from 1 to {count} groups")
    if scheme == "full" and groups != 1:
        raise BasisError(f"tying 'full' has one group, not {groups}: choose 1 group, or another scheme")
    return _structured(modules, groups) if scheme == "structured" else _tile(count, groups)


def _tile(count: int, groups: int) -> NDArray[np.int32]:
    return (np.arange(count, dtype=np.int64) * groups // count).astype(np.int32)


def _structured(modules: Sequence[str], groups: int) -> NDArray[np.int32]:
    members: dict[str, list[int]] = {}
    for position, module in enumerate(modules):
        members.setdefault(parse(module)[1], []).append(position)
    kinds = len(members)
    if groups < kinds:
        raise BasisError(
            f"tying 'structured' needs at least one group for each of the {kinds} kinds of module "
            f"({', '.join(members)}), but {groups} were asked for: choose {kinds} or more, or 'tiled'"
        )
    result = np.empty(len(modules), np.int32)
    for order, (kind, positions) in enumerate(members.items()):
        first, end = order * groups // kinds, (order + 1) * groups // kinds
        if end - first > len(positions):
            raise BasisError(
                f"tying 'structured' with {groups} groups gives {end - first} groups to the "
                f"{len(positions)} modules of kind {kind}: choose fewer groups, or 'tiled'"
            )
        result[positions] = first + _tile(len(positions), end - first)
    return result
