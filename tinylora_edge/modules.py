"""Modules: their names, their order, which of them are adapted, and the order of their rows.

On every engine a module is named by its GGUF tensor, `blk.<block>.<kind>.weight`.

convert_hf_to_gguf changes the order of the rows of q, k and fused qkv (`modify_tensors` of its model
classes). On architectures that need it, the two halves of each head, which transformers rotates, become
ggml's neighbouring pairs. A fused qkv that lies head by head becomes all q, then all k, then all v. Factors
are in the order of the GGUF. Whoever holds weights in the other order permutes the rows of B. An order is a
permutation, int64 [rows]:

    b_gguf = b_hf[order]        b_hf = b_gguf[inverse(order)]

Where the weights are at hand, they decide which order is theirs, so that no list of architectures has to be
right. Where they are not, `listed_order` looks the architecture up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import BasisError

KINDS: tuple[str, ...] = (
    *("attn_q", "attn_qkv", "attn_k", "attn_v", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
)
"""The adaptable kinds in canonical order inside a block (docs/FORMAT.md, "Modules and groups")."""

BEYOND: tuple[str, ...] = ("ffn_down_shexp", "ffn_gate_shexp", "ffn_gate_up_exps", "ffn_up_shexp")
"""Adaptable kinds that follow `KINDS`: the expert that all tokens share, and experts' gate and up in one."""

LIGHT = "light"
"""The target that stands for the attention of the first two thirds of the blocks (docs/YOUR_MODEL.md)."""

_ORDER = {kind: position for position, kind in enumerate(KINDS)}
_NAME = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.weight")


def parse(module: str) -> tuple[int, str]:
    """Return (block, kind) of a module name such as `blk.0.attn_q.weight`; BasisError for any other form."""
    match = _NAME.fullmatch(module)
    if match is None:
        raise BasisError(f"{module!r} is not a module name: expected the form 'blk.0.attn_q.weight'")
    return int(match[1]), match[2]


def is_adaptable(tensor: str) -> bool:
    """Tell whether a GGUF tensor name is that of a linear layer that can be adapted."""
    match = _NAME.fullmatch(tensor)
    return match is not None and match[2] in (*KINDS, *BEYOND)


def canonical_order(modules: Iterable[str]) -> list[str]:
    """Sort module names by block, then by `KINDS`; kinds outside `KINDS` follow in alphabetical order."""

    def key(module: str) -> tuple[int, int, str]:
        block, kind = parse(module)
        return block, _ORDER.get(kind, len(KINDS)), kind

    return sorted(modules, key=key)


def select(available: Sequence[str], targets: Sequence[str] | None = None) -> list[str]:
    """Choose those of a model's adaptable modules that are adapted, in canonical order.

    Targets are kinds (`attn_q`), module names, shell patterns over either (`attn_*`, `blk.1?.ffn_*`), or
    `light`, the attention of the first two thirds of the blocks; None or empty takes every module. One that
    begins with `!` leaves out what it matches, from the others or, alone, from every module (`!*_exps`).

    BasisError: nothing is left, or a target matches no module; then the message lists the kinds.
    """
    targets = targets or ()
    chosen = set(available) if all(target.startswith("!") for target in targets) else set[str]()
    for target in sorted(targets, key=lambda target: target.startswith("!")):
        matched = _matched(available, target.removeprefix("!"))
        if not matched:
            kinds = dict.fromkeys(parse(module)[1] for module in canonical_order(available))
            raise BasisError(
                f"unknown target {target!r}: no module of this model matches it. "
                f"Its kinds are {', '.join(kinds)}; patterns such as 'attn_*' work too"
            )
        chosen = chosen - matched if target.startswith("!") else chosen | matched
    if not chosen:
        raise BasisError(f"the targets {', '.join(targets)} leave no module to adapt")
    return canonical_order(chosen)


def _matched(available: Sequence[str], target: str) -> set[str]:
    if target == LIGHT:
        places = [(module, *parse(module)) for module in available]
        blocks = 1 + max((block for _, block, _ in places), default=0)
        return {m for m, block, kind in places if kind.startswith("attn_") and 3 * block < 2 * blocks}
    return {m for m in available if fnmatchcase(m, target) or fnmatchcase(parse(m)[1], target)}


RENAMED = {
    "mistral": "llama",
    "mixtral": "llama",
    "smollm": "llama",
    "phi": "phi2",
    "gemma3_text": "gemma3",
    "gpt_bigcode": "starcoder",
    "cohere": "command-r",
    "hunyuan_v1_dense": "hunyuan-dense",
    "gpt_oss": "gpt-oss",
}
"""`model_type` -> `general.architecture`, where they differ by more than punctuation."""

PERMUTED = frozenset(
    {
        "llama", "granite", "granitemoe", "granitehybrid", "minicpm", "deepseek", "arcee", "baichuan",
        "xverse", "internlm2", "olmo", "smollm3", "nanbeige", "llada",
    }
)  # fmt: skip
"""`general.architecture` of models whose rows of q and k convert_hf_to_gguf permutes: its classes with
`undo_permute`, and three with a permutation of their own."""

UNGROUPED = frozenset({"falcon", "bloom", "gptneox"})
"""`general.architecture` of models whose fused qkv lies head by head in Hugging Face's format."""


class Heads(NamedTuple):
    """How many attention heads a model has for q, and for k and v; None where that is not known."""

    queries: int | None = None
    keys: int | None = None


def read_heads(value: Callable[[str], Any]) -> Heads:
    """Return the heads that a configuration states; `value` returns the value of a field of config.json."""
    queries = value("num_attention_heads")
    keys = value("num_key_value_heads") or value("num_kv_heads") or queries
    if value("multi_query") and not value("new_decoder_architecture"):
        keys = 1  # Falcon-7B, whose num_kv_heads then means nothing
    return Heads(*(n if isinstance(n, int) and n > 0 else None for n in (queries, keys)))


def find_architecture(model_type: str, known: Collection[str]) -> str | None:
    """Return the `general.architecture` that convert_hf_to_gguf gives a `model_type`; None where none is
    among the `known` ones."""
    plain = model_type.replace("_", "").replace("-", "")
    names = (RENAMED.get(model_type), model_type, model_type.replace("_", "-"), plain)
    return next((name for name in names if name in known), None)


def row_orders(kind: str, rows: int, heads: Heads) -> list[NDArray[np.int64]]:
    """Return the row orders that a layer of a kind (`attn_q`) may have: int64 [rows], the identity first."""
    every = np.arange(rows)
    orders = [every]
    queries, keys = heads
    count = {"attn_q": queries, "attn_k": keys}.get(kind)
    if count and rows % (2 * count) == 0:
        # [head, half, i] -> [head, i, half]
        orders.append(every.reshape(count, 2, -1).swapaxes(1, 2).reshape(-1))
    if kind == "attn_qkv" and queries and keys and queries % keys == 0 and rows % (queries + 2 * keys) == 0:
        # for each head of k its queries, k and v -> all q, all k, all v
        grouped = every.reshape(keys, queries // keys + 2, -1)
        parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
        orders.append(np.concatenate([part.reshape(-1) for part in parts]))
    return orders


def listed_order(architecture: str, kind: str, rows: int, heads: Heads) -> NDArray[np.int64]:
    """Return the one of `row_orders` that a layer has by its `general.architecture`: int64 [rows]."""
    moved = UNGROUPED if kind == "attn_qkv" else PERMUTED
    return row_orders(kind, rows, heads)[-1 if architecture in moved else 0]


def inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the permutation that undoes another: int64 [rows]."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return back
