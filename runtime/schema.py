"""Answers that keep to a JSON schema or a list of labels, by llguidance's parser over the tokens of a model.

llama.cpp has grammars of its own, which a short pattern keeps busy for minutes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, RequestError
from .engine import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

Schema: TypeAlias = Mapping[str, Any] | Sequence[str]
"""A JSON schema, or labels, one of which is the whole answer; an empty schema is any JSON object."""

SCHEMA_BYTES = 1 << 16
"""Bytes of a JSON schema that an answer keeps to: a grammar is made of it, in more than linear time."""

SCHEMA_PROPERTIES = 400
"""Properties of an object in a schema: llguidance goes on with 2,000 items at once, and each that may be left
out is four of them."""

SCHEMA_NUMBER = 1 << 53
"""Size of a number in a schema: what JSON promises to keep (RFC 8259, section 6). At -2^63 llguidance 1.9
overflows its stack."""

SCHEMA_MULTIPLES = 10_000
"""Least common multiple of all that numbers in a schema are to be multiples of, without decimal points: an
automaton has a state for each remainder, and two rules for one number have one for each pair."""

SCHEMA_REPEATS = 4096
"""Characters that the patterns of a schema repeat, counted repetitions written out, and its lengths where a
pattern has to hold as well. With 65,536 of them a schema of 200 bytes takes llguidance 21 seconds."""

_BETWEEN = r" |\n[ \t]{0,20}"
"""White space that an answer may have between two parts. Without a bound a model may write nothing else."""

_LEXER_STATES = 1 << 16
"""States of the parser's automaton, of some kB each: what a schema of a stranger may take."""

_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_DIGITS = 32  # of a count that is read
_BEYOND = SCHEMA_REPEATS + SCHEMA_BYTES + 1


def grammar_of(schema: Schema, vocabulary: Vocabulary) -> Grammar:
    """Return what a schema allows, over the tokens of a model. Any thread may call it.

    Raises:
        RequestError: llguidance makes no grammar of it, it is too large, or a label is no text.
        MissingExtraError: llguidance is not installed.
        TinyLoraError: llguidance does not read the model's tokens.
    """
    if isinstance(schema, Mapping):
        text = check_schema(schema or {"type": "object"})
        check_refs(schema)
        return compiled(text, vocabulary, json_schema=True)
    return compiled(_choice(schema), vocabulary)


def compiled(text: str, vocabulary: Vocabulary, *, json_schema: bool = False) -> Grammar:
    """Return the grammar of a JSON schema, or of llguidance's form of Lark. Errors: those of `grammar_of`."""
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ModuleNotFoundError as error:
        if error.name != "llguidance":
            raise
        raise MissingExtraError("a schema", "llguidance", "schema") from None
    try:
        if json_schema:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BETWEEN})
        else:
            grammar = LLMatcher.grammar_from_lark(text)
    except ValueError as error:
        raise _no_grammar(str(error)) from None
    limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
    return Grammar(LLMatcher(vocabulary.for_grammars, grammar, log_level=0, limits=limits), vocabulary.ends)


class Grammar:
    """What a schema allows next. One thread uses it.

    Args:
        matcher: at its start.
        ends: whether a token ends an answer.

    Raises:
        RequestError: the matcher is of no schema.
    """

    def __init__(self, matcher: LLMatcher, ends: Callable[[int], bool]) -> None:
        self._matcher, self._ends = matcher, ends
        self._check()

    def copy(self) -> Grammar:
        """Return another one for another answer, which is where this one is; any thread may call it."""
        return Grammar(self._matcher.deep_copy(), self._ends)

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
            raise _no_grammar(self._matcher.get_error())


def check_schema(schema: Mapping[str, Any]) -> str:
    """Return a schema as JSON, once its size is checked.

    Raises:
        RequestError: it is too large, or is no JSON.
    """
    try:
        text = json.dumps(schema)
    except (RecursionError, TypeError, ValueError) as error:  # of an app: what came over HTTP was JSON
        raise _refused(f"the schema is no JSON: {error}") from None
    if len(text) > SCHEMA_BYTES:
        raise _refused(
            f"the JSON schema has {len(text):,} bytes, and at most {SCHEMA_BYTES:,} become a grammar"
        )
    nodes = [*_values(schema)]
    rules = [node for node in nodes if isinstance(node, Mapping)]
    for number in nodes:
        if _is_number(number) and not abs(number) <= SCHEMA_NUMBER:
            raise _refused(
                f"the JSON schema has the number {str(number)[:40]}, and JSON keeps those up to 2^53 alone"
            )
    for rule in rules:
        properties = rule.get("properties")
        if isinstance(properties, Mapping) and len(properties) > SCHEMA_PROPERTIES:
            raise _refused(
                f"an object of the JSON schema has {len(properties):,} properties, and at most "
                f"{SCHEMA_PROPERTIES} become a grammar"
            )
    if (multiples := math.lcm(*(_digits(rule.get("multipleOf")) for rule in rules))) > SCHEMA_MULTIPLES:
        raise _refused(
            f"the least common multiple of all multipleOf in the JSON schema is {min(multiples, 10**18):,} "
            f"or more without their decimal points, and at most {SCHEMA_MULTIPLES:,} becomes a grammar"
        )
    if _repeats(rules) > SCHEMA_REPEATS:
        raise _refused(
            "the patterns of the JSON schema, and the lengths of what has to match one, repeat more than "
            f"{SCHEMA_REPEATS:,} characters: shorten what repeats, or leave the lengths out"
        )
    return text


def check_refs(schema: Mapping[str, Any]) -> None:
    """Check that no $ref of a schema leads to itself.

    Raises:
        RequestError: one does.
    """
    for rule in _values(schema):
        if isinstance(rule, Mapping) and _circular(schema, rule):
            raise _refused(
                f"the $ref {rule['$ref'][:80]!r} in the JSON schema leads to itself: no answer keeps to it"
            )


def _circular(schema: Mapping[str, Any], node: Any) -> bool:
    """Whether the $ref of a rule leads, over others, to one that was there before: no answer keeps to it."""
    seen = set()
    while isinstance(node, Mapping) and str(ref := node.get("$ref", "")).startswith("#"):
        if ref in seen:
            return True
        seen.add(ref)
        node = schema
        for part in unquote(ref).split("/")[1:]:  # RFC 6901
            part = part.replace("~1", "/").replace("~0", "~")
            node = node.get(part) if isinstance(node, Mapping) else None
    return False


def _choice(labels: Sequence[str]) -> str:
    """Return the grammar of labels, as llguidance's form of Lark has it.

    Raises:
        RequestError: there is none, one is no text, or they are too large.
    """
    if isinstance(labels, str) or not labels or not all(isinstance(each, str) and each for each in labels):
        raise _refused(f"the labels are {str(labels)[:100]!r}: a schema is a list of texts, or a JSON schema")
    text = "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in dict.fromkeys(labels))
    if (size := len(text.encode(errors="replace"))) > SCHEMA_BYTES:
        raise _refused(
            f"{len(labels):,} labels have {size:,} bytes, and at most {SCHEMA_BYTES:,} become a grammar"
        )
    return text


def _repeats(rules: list[Mapping[str, Any]]) -> int:
    """Return how many characters are repeated, at most, where two rules may have to hold together.

    llguidance looks for a text that both allow, in a time that is proportional to that: 21 seconds for a
    repetition of 65,536 beside another pattern, a quarter of that and less beside a length. One pattern alone
    takes no time, nor do formats.
    """
    patterns, several, lengths = list[str](), len(rules) > 1, list[float]()
    for rule in rules:
        own, named = rule.get("pattern"), rule.get("patternProperties")
        found = [own] if isinstance(own, str) else []
        found += [*named] if isinstance(named, Mapping) else []
        patterns += found
        lengths += [rule[name] for name in ("minLength", "maxLength") if _is_number(rule.get(name))]
    merged = several and any(rule.keys() & {"allOf", "anyOf", "oneOf", "$ref"} for rule in rules)
    if not patterns or not (merged or lengths or len(patterns) > 1):
        return 0
    longest = max((min(length, _BEYOND) for length in lengths), default=0)
    return sum(map(repeated, patterns)) + int(max(longest, 0)) // 4


def repeated(pattern: str) -> int:
    """Return how many characters more a pattern has at most once its counted repetitions are written out.

    A count behind a character or a class adds up; one behind a group, another count or white space, which
    may stand for anything, multiplies all of the pattern.
    """
    times, size = 1, len(pattern)
    for count in _COUNT.finditer(pattern):
        most = max(int(count[2] or count[1]), 1) if len(count[0]) < _DIGITS else _BEYOND
        before = pattern[count.start() - 1 : count.start()]
        if before in ")}?*+" or before.isspace():
            times = min(times * most, _BEYOND)
        else:
            size += most
    return min(times * size, _BEYOND) - len(pattern) if times > 1 or size > len(pattern) else 0


def _values(node: Any) -> Iterator[Any]:
    """Yield all values of a document; its objects are schemas, or may become some by a $ref."""
    yield node
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _values(inner)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digits(number: Any) -> int:
    """Return a number without its decimal point: 25 for 0.25; 1 for what is none."""
    if not _is_number(number) or not abs(number) <= SCHEMA_NUMBER:
        return 1
    shown = Decimal(int(number) if number == int(number) else str(number))
    return int("".join(map(str, shown.as_tuple().digits))) or 1


def _no_grammar(why: str) -> RequestError:
    return _refused(f"llguidance makes no grammar of this schema: {' '.join(why.split())[:200]}")


def _refused(why: str) -> RequestError:
    return RequestError(why, param="response_format")
