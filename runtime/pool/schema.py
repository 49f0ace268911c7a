"""JSON schemas that answers keep to: what one may have before a grammar is made of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import reduce
from typing import Any

from ...errors import RequestError
from ...limits import SCHEMA_BYTES, SCHEMA_MULTIPLES, SCHEMA_NUMBER, SCHEMA_PROPERTIES, SCHEMA_REPEATS

_PATTERNS = {"pattern", "patternProperties"}
_LENGTHS = {"minLength", "maxLength"}
_MERGED = {"allOf", "anyOf", "oneOf", "$ref"}
_NO_RULES = {
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
}
_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_DIGITS = 32
_BEYOND = SCHEMA_REPEATS + SCHEMA_BYTES + 1  # of any pattern that is let through
_VERBOSE = re.compile(r"\(\?[a-zA-Z-]*x")


def schema_text(schema: Mapping[str, Any]) -> str:
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
    multiples, repeats = 1, 0
    nodes = [*_values(schema)]
    rules = [node for node in nodes if isinstance(node, Mapping)]
    merged = any(_PATTERNS & rule.keys() for rule in rules) and any(map(_merges, rules))
    for node in nodes:
        if _is_number(node) and not abs(node) <= SCHEMA_NUMBER:
            raise _refused(
                f"the JSON schema has the number {str(node)[:40]}, and JSON keeps those up to 2^53 alone"
            )
        if not isinstance(node, Mapping):
            continue
        properties = node.get("properties")
        if isinstance(properties, Mapping) and len(properties) > SCHEMA_PROPERTIES:
            raise _refused(
                f"an object of the JSON schema has {len(properties):,} properties, and at most "
                f"{SCHEMA_PROPERTIES} become a grammar"
            )
        repeats += _repeats(node, merged=merged)
        if repeats > SCHEMA_REPEATS:
            raise _refused(
                "the patterns of the JSON schema, and the lengths of what has to match one, repeat more than "
                f"{SCHEMA_REPEATS:,} characters: shorten what repeats, or leave the lengths out"
            )
        multiples = math.lcm(multiples, _digits(node.get("multipleOf")))
        if multiples > SCHEMA_MULTIPLES:
            many = f"{multiples:,}" if multiples < 10**18 else "more than 10^18"
            raise _refused(
                f"the least common multiple of all multipleOf in the JSON schema is {many} without their "
                f"decimal points, and at most {SCHEMA_MULTIPLES:,} becomes a grammar"
            )
    return text


def no_grammar(why: str) -> RequestError:
    """Return the error of a schema that no grammar is made of."""
    return _refused(f"llguidance makes no grammar of this JSON schema: {' '.join(why.split())[:200]}")


def _refused(why: str) -> RequestError:
    return RequestError(why, param="response_format")


def _values(node: Any) -> Iterator[Any]:
    """Yield all values of a document; its objects are schemas, or may become some by a $ref."""
    yield node
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _values(inner)


def _repeats(node: Mapping[str, Any], *, merged: bool) -> int:
    """Return how many characters a schema repeats that has to hold together with another rule.

    llguidance looks for a text that both allow, in a time that is proportional to that: 21 seconds for a
    repetition of 65,536 beside another pattern, a quarter of that and less beside a length. One pattern alone
    takes no time, nor do formats.

    Args:
        merged: some schema of the document has to hold together with another one, so that its rules may meet
            those that stand elsewhere.
    """
    named, own = node.get("patternProperties"), node.get("pattern")
    lengths = [_bounded(length) for name in _LENGTHS if isinstance(length := node.get(name), int | float)]
    longest = max(lengths, default=0) // 4 if merged or own is not None else 0
    patterns = [*named] if isinstance(named, Mapping) else []
    if isinstance(own, str) and (merged or lengths or "format" in node):
        patterns.append(own)
    return sum(map(repeated, patterns)) + longest


def _merges(node: Mapping[str, Any]) -> bool:
    """Whether a schema has to hold together with another one."""
    together, several = _MERGED & node.keys(), node.get("allOf")
    if isinstance(several, list) and len(several) > 1:
        return True
    return len(together) > 1 or bool(together and node.keys() - together - _NO_RULES)


def repeated(pattern: str) -> int:
    """Return how many characters more a pattern has once its counted repetitions are written out.

    What repeats without a bound is there once. A pattern that is not understood is repeated as often as all
    its counts are, multiplied, which no nesting exceeds.
    """
    if _VERBOSE.search(pattern):  # there, what looks like a class or a group may be a comment
        return _product(pattern)
    # Characters of the groups that are open, written out, of what came last, and of the pattern as it is.
    sums, last, plain, place = [0], 0, 0, 0
    while place < len(pattern):
        count, char = _COUNT.match(pattern, place), pattern[place]
        if count is not None:
            more = last * (_times(count) - 1)
            sums[-1], last, place = min(sums[-1] + more, _BEYOND), min(last + more, _BEYOND), count.end()
            continue
        place = _behind(pattern, place)
        if char == "(":
            sums.append(0)
        elif char == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] = min(sums[-1] + last, _BEYOND)
        elif char == ")":
            return _product(pattern)
        elif char not in "*+?":  # after these a count is of the same
            sums[-1], last, plain = sums[-1] + 1, 1, plain + 1
    return sums[0] - plain if len(sums) == 1 else _product(pattern)


def _behind(pattern: str, place: int) -> int:
    """Return the place behind a character, an escaped one, or a class, in which classes may stand."""
    if pattern[place] == "\\":
        return place + 2
    if pattern[place] != "[":
        return place + 1
    depth = 0
    while place < len(pattern):
        char = pattern[place]
        place += 2 if char == "\\" else 1
        if char == "[":
            depth += 1
            place += pattern.startswith("^", place)
            place += pattern.startswith("]", place)  # the first one is a character
        elif char == "]" and (depth := depth - 1) == 0:
            break
    return place


def _times(count: re.Match[str]) -> int:
    return max(int(count[2] or count[1]), 1) if len(count[0]) < _DIGITS else _BEYOND


def _product(pattern: str) -> int:
    times = reduce(lambda product, count: min(product * _times(count), _BEYOND), _COUNT.finditer(pattern), 1)
    return (times - 1) * len(pattern)


def _bounded(length: float) -> int:
    return int(min(length, _BEYOND)) if length >= 0 else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digits(number: Any) -> int:
    """Return a number without its decimal point: 25 for 0.25, and 2500 for 2500.

    What is no number, or none that passes, gets 1: others say so.
    """
    if not _is_number(number) or not abs(number) <= SCHEMA_NUMBER:
        return 1
    shown = Decimal(int(number) if number == int(number) else str(number))
    return int("".join(map(str, shown.as_tuple().digits))) or 1
