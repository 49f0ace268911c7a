"""Answers that keep to a JSON schema, by llguidance's parser over the tokens of a bundle."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....errors import MissingExtraError, RequestError, TinyLoraError
from ...pool.schema import no_grammar, schema_text

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_TOKENIZER_NAME = "tokenizer.json"
_BETWEEN = r" |\n[ \t]{0,20}"
"""White space that an answer may have between two parts: what llama.cpp's grammars allow. Without a bound a
model may write nothing else."""

_LEXER_STATES = 1 << 16
"""States of the parser's automaton, of some kB each: what a schema of a stranger may take."""


class Grammars:
    """The tokens of a model as a grammar needs them; they are read when the first schema comes.

    Args:
        folder: that has the model's tokenizer.json.
        n_vocab: entries of the logits.
        eos: tokens that end an answer.
    """

    def __init__(self, folder: Path, *, n_vocab: int, eos: Collection[int]) -> None:
        self._folder, self._n_vocab, self._eos = folder, n_vocab, frozenset(eos)
        self._lock = threading.Lock()
        self._read: LLTokenizer | None = None

    def of(self, schema: Mapping[str, Any]) -> Grammar:
        """Return what a schema allows; an empty one is any JSON object. Any thread may call it.

        Raises:
            RequestError: llguidance makes no grammar of it, it is too large, or llguidance is not installed.
            TinyLoraError: llguidance does not read the model's tokenizer.
        """
        text = schema_text(schema or {"type": "object"})
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ModuleNotFoundError as error:
            if error.name != "llguidance":
                raise
            missing = MissingExtraError("a JSON schema on ONNX Runtime", "llguidance", "schema")
            raise RequestError(
                str(missing), param="response_format", code="unsupported_parameter"
            ) from missing
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BETWEEN})
        except ValueError as error:
            raise _refused(str(error)) from None
        limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        return Grammar(LLMatcher(self._tokenizer(), grammar, log_level=0, limits=limits), self._eos)

    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._read is None:
                path = self._folder / _TOKENIZER_NAME
                try:
                    self._read = LLTokenizer(
                        path.read_text("utf-8"), n_vocab=self._n_vocab, eos_token=sorted(self._eos)
                    )
                except Exception as error:  # of the tokenizer's own library, any of them
                    raise TinyLoraError(
                        f"llguidance does not read {path}, so that no answer can keep to a schema: "
                        f"{_short(str(error))}"
                    ) from error
            return self._read


class Grammar:
    """What a JSON schema allows next; see `Constraint`. One thread uses it.

    Args:
        matcher: at its start.
        eos: tokens that end an answer.

    Raises:
        RequestError: the matcher is of no schema.
    """

    def __init__(self, matcher: LLMatcher, eos: frozenset[int]) -> None:
        self._matcher, self._eos = matcher, eos
        self._check()

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        if token in self._eos:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [vocabulary] with -infinity for all tokens that may not come next.

        Raises:
            RequestError: to tell takes more than a parser may.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").astype(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Go on after a token, which is allowed and does not end the answer. Errors: those of `masked`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


def _refused(why: str) -> RequestError:
    return no_grammar("llguidance", _short(why))


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
