"""The demo's proof, by logits: the vector was in force, and `clear` gives the base back bit for bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import console
from .results import Proof

if TYPE_CHECKING:
    from llama_cpp import Llama

Logits = NDArray[np.float32]


class DemoError(console.CommandError):
    """The demo did not show what it promises."""


def logits(llm: Llama, tokens: Sequence[int]) -> Logits:
    """Return a copy of the logits after a prompt's tokens: float32 [vocabulary]."""
    import llama_cpp

    llm.reset()
    llm.eval(tokens)
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


def plain_logits(model: Path, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[list[Logits], float]:
    """Return the logits of a plain Llama after each prompt, and the seconds that it loads in."""
    from llama_cpp import Llama

    start = time.perf_counter()
    with closing(Llama(str(model), **options)) as plain:
        seconds = time.perf_counter() - start
        return [logits(plain, tokens) for tokens in prompts], seconds


def prove(
    plain: Sequence[Logits], changed: Sequence[Logits], restored: Sequence[Logits], *, zero: bool = False
) -> Proof:
    """Compare logits, prompt by prompt: of a plain Llama, under the vector, and after `clear`.

    Args:
        plain: of a `llama_cpp.Llama` that never knew of a vector, float32 [vocabulary] each.
        changed: under the vector.
        restored: after `clear`.
        zero: the vector is zero; then it must change nothing, and otherwise something.

    Raises:
        DemoError: the restored ones are not bit-identical to the plain ones, or the vector changed nothing.
    """
    moved = _worst(plain, changed)
    left = _worst(plain, restored)
    if any(a.tobytes() != b.tobytes() for a, b in zip(plain, restored, strict=True)):
        raise DemoError(
            f"the base was not restored: after clear() its logits differ by up to {left:.3g} from those of a "
            "plain llama_cpp.Llama, where 0 was promised. Please report it"
        )
    if moved == 0 and not zero:
        raise DemoError("the vector changed no logit: the adapters are not in force. Please report it")
    if moved != 0 and zero:
        raise DemoError(
            f"a vector of zeros changed the logits by up to {moved:.3g}, where 0 was promised. "
            "Please report it"
        )
    return Proof(
        logits=sum(a.size for a in plain),
        prompts=len(plain),
        restored_bit_for_bit=True,
        restored_difference=left,
        vector_difference=moved,
    )


def _worst(left: Sequence[Logits], right: Sequence[Logits]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
