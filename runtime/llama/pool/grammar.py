"""Answers that keep to a JSON schema, by llama.cpp's grammars."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_grammar import JSON_GBNF, json_schema_to_gbnf
from numpy.typing import NDArray

from ....errors import RequestError
from ...pool.schema import no_grammar, schema_text

_ROOT = b"root"
# In a string the converter lets control characters stand as they are, which JSON does not.
_ANY, _PRINTED = r'char ::= [^"\\] |', r'char ::= [^"\\\x7F\x00-\x1F] |'
_DATA = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama_token_data


class Grammar:
    """What a JSON schema allows next; it is freed with the object.

    Args:
        vocab: the `llama_vocab`, which outlives it.
        schema: of the answer; an empty one is any JSON object.

    Raises:
        RequestError: llama.cpp makes no grammar of the schema, or it is too large.
    """

    _free = staticmethod(llama_cpp.llama_sampler_free)

    def __init__(self, vocab: Any, schema: Mapping[str, Any]) -> None:
        self._sampler: Any = None
        self._sampler = llama_cpp.llama_sampler_init_grammar(vocab, _grammar_of(schema), _ROOT)
        if not self._sampler:
            raise RequestError("llama.cpp makes no grammar of this JSON schema", param="response_format")

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        return math.isfinite(self._apply(np.array([token], np.int32), np.zeros(1, np.float32))[0])

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [vocabulary] with -infinity for all tokens that may not come next."""
        return self._apply(np.arange(len(logits), dtype=np.int32), logits)

    def accept(self, token: int) -> None:
        """Go on after a token, which is allowed and does not end the answer."""
        llama_cpp.llama_sampler_accept(self._sampler, token)

    def _apply(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        entries = np.zeros(len(tokens), _DATA)
        entries["id"], entries["logit"] = tokens, logits
        pointer = entries.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(pointer, len(tokens), -1, False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        found: NDArray[np.float32] = entries["logit"].copy()
        return found

    def __del__(self) -> None:
        if self._sampler:
            self._free(self._sampler)
            self._sampler = None


def _grammar_of(schema: Mapping[str, Any]) -> bytes:
    if not schema:
        return str(JSON_GBNF).encode()
    text = schema_text(schema)
    try:
        return str(json_schema_to_gbnf(text)).replace(_ANY, _PRINTED).encode()
    except Exception as error:  # the converter raises whatever it stumbles over
        raise no_grammar("llama.cpp", f"{type(error).__name__}: {str(error)[:200]}") from None
