"""Answers that keep to a JSON schema, by llguidance's parser over the tokens of a model, in both engines.

llama.cpp has grammars of its own, which a short pattern keeps busy for minutes (docs/TRAPS.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtraError, RequestError
from .schema import no_grammar, schema_text

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_BETWEEN = r" |\n[ \t]{0,20}"
"""White space that an answer may have between two parts. Without a bound a model may write nothing else."""

_LEXER_STATES = 1 << 16
"""States of the parser's automaton, of some kB each: what a schema of a stranger may take."""


class Grammars:
    """What makes grammars over the tokens of a model; they are read when the first schema comes.

    Args:
        read: returns the tokens, as llguidance takes them. It is called while `of` is.
        ends: whether a token ends an answer.
    """

    def __init__(self, read: Callable[[], LLTokenizer], ends: Callable[[int], bool]) -> None:
        self._read, self._ends = read, ends
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None

    def of(self, schema: Mapping[str, Any]) -> Grammar:
        """Return what a schema allows; an empty one is any JSON object. Any thread may call it.

        Raises:
            RequestError: llguidance makes no grammar of it, it is too large, or llguidance is not installed.
            TinyLoraError: llguidance does not read the model's tokens.
        """
        text = schema_text(schema or {"type": "object"})
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ModuleNotFoundError as error:
            if error.name != "llguidance":
                raise
            missing = MissingExtraError("a JSON schema", "llguidance", "schema")
            raise RequestError(
                str(missing), param="response_format", code="unsupported_parameter"
            ) from missing
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BETWEEN})
        except ValueError as error:
            raise no_grammar(str(error)) from None
        with self._lock:
            self._tokens = self._tokens or self._read()
        limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        return Grammar(LLMatcher(self._tokens, grammar, log_level=0, limits=limits), self._ends)


class Grammar:
    """What a JSON schema allows next; see `Constraint`. One thread uses it.

    Args:
        matcher: at its start.
        ends: whether a token ends an answer.

    Raises:
        RequestError: the matcher is of no schema.
    """

    def __init__(self, matcher: LLMatcher, ends: Callable[[int], bool]) -> None:
        self._matcher, self._ends = matcher, ends
        self._check()

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        if self._ends(token):
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
            raise no_grammar(self._matcher.get_error())
