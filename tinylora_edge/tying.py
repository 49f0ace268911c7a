"""Tying: the map from modules to the rows of v that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import BasisError
from .modules import canonical_order, parse

SCHEMES: tuple[str, ...] = ("full", "none", "structured", "tiled")
"""The schemes that `tie` knows. A basis may also carry any other map, as scheme `custom`."""


def tie(modules: Sequence[str], scheme: str, groups: int) -> NDArray[np.int32]:
    """Return the group of every module: int32 [M], values 0 .. groups-1, each used at least once.

    Args:
        modules: module names in canonical order.
        scheme: `tiled` (neighbours in depth share a row), `structured` (a kind's modules share the
            rows of that kind, tiled over depth), `full` (one row for all), or `none` (a row a module).
        groups: G, the number of rows of v; `full` takes 1, and `none` the number of modules.

    Raises:
        BasisError: an unknown scheme, or a number of groups that the scheme cannot make.
    """
    count = len(modules)
    if scheme not in SCHEMES:
        raise BasisError(f"unknown tying scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if count == 0:
        raise BasisError("there are no modules to tie")
    if list(modules) != canonical_order(modules):
        raise BasisError("the modules are not in canonical order: sort them with modules.canonical_order")
    if not 1 <= groups <= count:
        raise BasisError(f"{groups} groups for {count} modules: choose from 1 to {count} groups")
    if scheme == "full":
        if groups != 1:
            raise BasisError(f"tying 'full' has one group, not {groups}: choose 1 group, or another scheme")
        return np.zeros(count, np.int32)
    if scheme == "none" and groups != count:
        raise BasisError(
            f"tying 'none' has a group for each of the {count} modules, not {groups} groups: choose {count} "
            "groups, or 'tiled'"
        )
    if scheme in ("none", "tiled"):
        return _tile(count, groups)
    return _structured(modules, groups)


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
