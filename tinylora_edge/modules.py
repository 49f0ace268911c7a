"""Module names: their kinds, their canonical order, and the choice of those that a basis adapts.

A module is named by its GGUF tensor, `blk.<block>.<kind>.weight`, on every engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from .errors import BasisError

KINDS: tuple[str, ...] = (
    "attn_q",
    "attn_qkv",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
)
"""The adaptable kinds in canonical order inside a block (docs/FORMAT.md, "Modules and tying")."""

BEYOND: tuple[str, ...] = ("ffn_down_shexp", "ffn_gate_shexp", "ffn_gate_up_exps", "ffn_up_shexp")
"""Adaptable kinds that follow those: the expert that all tokens share; gate and up of experts in one."""

LIGHT = "light"
"""The target that stands for the attention of the first two thirds of the blocks (docs/LEARNED_BASIS.md)."""

_ORDER = {kind: position for position, kind in enumerate(KINDS)}
_NAME = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.weight")


def parse(module: str) -> tuple[int, str]:
    """Return (block, kind) of a module name such as `blk.0.attn_q.weight`.

    Raises:
        BasisError: the name is not of that form.
    """
    match = _NAME.fullmatch(module)
    if match is None:
        raise BasisError(f"{module!r} is not a module name: expected the form 'blk.0.attn_q.weight'")
    return int(match[1]), match[2]


def is_adaptable(tensor: str) -> bool:
    """Tell whether a GGUF tensor name is that of a linear layer that a basis can adapt."""
    match = _NAME.fullmatch(tensor)
    return match is not None and match[2] in (*KINDS, *BEYOND)


def canonical_order(modules: Iterable[str]) -> list[str]:
    """Sort module names by block, then by `KINDS`; kinds outside `KINDS` follow in alphabetical order.

    Raises:
        BasisError: a name is not of the form `blk.<block>.<kind>.weight`.
    """

    def key(module: str) -> tuple[int, int, str]:
        block, kind = parse(module)
        return block, _ORDER.get(kind, len(KINDS)), kind

    return sorted(modules, key=key)


def select(available: Sequence[str], targets: Sequence[str] | None = None) -> list[str]:
    """Choose the modules to adapt, in canonical order.

    Args:
        available: names of the model's adaptable modules.
        targets: kinds (`attn_q`), module names, or shell patterns over either (`attn_*`,
            `blk.1?.ffn_down.weight`), or `light`, the attention of the first two thirds of the blocks;
            None or empty takes every module. One that begins with `!` leaves out what it matches, from
            the others or, alone, from every module (`!*_exps`).

    Raises:
        BasisError: a target matches no module, or nothing is left; the message lists the kinds that
            there are.
    """
    if not targets:
        return canonical_order(available)
    chosen = set() if any(not target.startswith("!") for target in targets) else set(available)
    left_out: set[str] = set()
    for target in targets:
        out = target.startswith("!")
        pattern = target[1:] if out else target
        matched = _matched(available, pattern)
        if not matched:
            kinds = sorted({parse(m)[1] for m in available}, key=lambda kind: (_ORDER.get(kind, 99), kind))
            raise BasisError(
                f"unknown target {target!r}: no module of this model matches it. "
                f"Its kinds are {', '.join(kinds)}; patterns such as 'attn_*' work too"
            )
        if out:
            left_out |= matched
        else:
            chosen |= matched
    if not chosen - left_out:
        raise BasisError(f"the targets {', '.join(targets)} leave no module to adapt")
    return canonical_order(chosen - left_out)


def _matched(available: Sequence[str], target: str) -> set[str]:
    if target == LIGHT:
        places = [(module, *parse(module)) for module in available]
        blocks = 1 + max((block for _, block, _ in places), default=0)
        return {m for m, block, kind in places if kind.startswith("attn_") and 3 * block < 2 * blocks}
    return {m for m in available if fnmatchcase(m, target) or fnmatchcase(parse(m)[1], target)}
