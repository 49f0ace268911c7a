"""The parts of a loaded model that prompts, lanes and batches need to know, as protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ...basis import Basis
from ..pool.marks import Marks
from .adapters import AdapterLock


class Tokens(Protocol):
    """A model that turns text into tokens and back, and renders chat messages."""

    chat_format: str
    chat_handler: Any
    metadata: Mapping[str, str]
    _chat_handlers: Mapping[str, Any]

    @property
    def marks(self) -> Marks:
        """The texts of its special tokens, which are text in chat messages."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the token ids of a text in UTF-8, of which each part that `marks` cut is read alone."""

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens in UTF-8, special ones left out."""


class Weights(Tokens, Protocol):
    """A model whose weights other contexts can compute with."""

    basis: Basis
    model: Any  # the llama_model
    model_params: Any
    context_params: Any
    turns: AdapterLock  # of what computes with the weights, and what loads or frees adapters
    _dependents: Any  # what computes with the weights, and has to be closed before they go

    def _staying(self) -> AbstractContextManager[None]:
        """Keep the weights from being freed during a block, or say that they were."""

    def n_vocab(self) -> int:
        """Entries of the logits."""

    def own_adapters(self) -> list[tuple[Any, float]]:
        """Return the adapters that the caller loaded it with, and their scales: they are always in force."""
