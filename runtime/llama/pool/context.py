"""A context of a pool: slots, each with the KV cells of one user's last request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ....errors import TinyLoraError
from ...pool import places
from ...pool.answering import too_large
from ..log import signals_wait
from ..protocols import Weights

CHUNK = 512
"""Tokens of a prompt that are evaluated at once, as many as `llama_cpp.Llama` takes."""

_AS_THE_MODEL = (  # as the model's own context has them, so that answers are the same to the last bit
    "type_k",
    "type_v",
    "flash_attn_type",
    "rope_scaling_type",
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_orig_ctx",
    "offload_kqv",
    "op_offload",
    "swa_full",
)


@dataclass(eq=False)
class Slot(places.Slot):
    """A sequence of a context, and whose it is.

    Attributes:
        number: of the sequence.
    """

    number: int


class Context:
    """A llama.cpp context over the weights of a loaded model. One thread uses it.

    Args:
        llm: the model; it must outlive the context.
        slots: sequences, each with cells of its own.
        n_ctx: tokens of each of them.
        n_threads: of llama.cpp.

    Raises:
        TinyLoraError: llama.cpp cannot make the context.
    """

    def __init__(self, llm: Weights, *, slots: int, n_ctx: int, n_threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        for name in _AS_THE_MODEL:
            setattr(params, name, getattr(llm.context_params, name))
        params.n_ctx = n_ctx * slots
        params.n_batch = params.n_ubatch = CHUNK
        params.n_seq_max = slots
        params.kv_unified = False  # a sequence is computed as if it were alone
        params.n_threads = params.n_threads_batch = n_threads
        with signals_wait():
            self.context: Any = llama_cpp.llama_init_from_model(llm.model, params)
        if not self.context:
            raise TinyLoraError(f"llama.cpp cannot make a context of {slots} times {n_ctx} tokens")
        self.n_ctx = min(int(llama_cpp.llama_n_ctx_seq(self.context)), n_ctx)
        self.slots = [Slot(number) for number in range(slots)]
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._n_vocab = llm.n_vocab()
        self._buffer = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def free(self) -> None:
        """Free the context."""
        llama_cpp.llama_batch_free(self._buffer)
        llama_cpp.llama_free(self.context)

    def cut(self, slot: Slot, length: int) -> int:
        """Keep the first cells of a slot alone; return how many: fewer where the model cannot keep a part."""
        if not llama_cpp.llama_memory_seq_rm(self._memory, slot.number, length, -1):
            llama_cpp.llama_memory_seq_rm(self._memory, slot.number, -1, -1)
            length = 0
        del slot.tokens[length:]
        return length

    def evaluate(self, slot: Slot, tokens: Sequence[int], *, last: bool) -> NDArray[np.float32] | None:
        """Append up to `CHUNK` tokens to a slot; return the logits of the last of them if they are wanted.

        Returns:
            float32 [vocabulary], until the next call.

        Raises:
            VectorError: the logits are not finite, since the slot's vector is too large for the model. All
                cells are empty then, as no mask hides what was in them: the caller cuts all slots.
            TinyLoraError: llama.cpp fails; the slot is empty then.
        """
        buffer, count, begin = self._buffer, len(tokens), len(slot.tokens)
        buffer.n_tokens = count
        for i, token in enumerate(tokens):
            buffer.token[i] = token
            buffer.pos[i] = begin + i
            buffer.n_seq_id[i] = 1
            buffer.seq_id[i][0] = slot.number
            buffer.logits[i] = i == count - 1  # of each part: who leaves after one leaves no NaN behind
        code = llama_cpp.llama_decode(self.context, buffer)
        if code:
            self.cut(slot, 0)
            raise TinyLoraError(f"llama.cpp could not evaluate {count} tokens (code {code})")
        slot.tokens.extend(tokens)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (self._n_vocab,))
        if not np.isfinite(logits.max()):
            llama_cpp.llama_memory_clear(self._memory, True)
            raise too_large()
        return logits if last else None
