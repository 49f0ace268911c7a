"""JSON schemas that answers keep to: what one may have before a grammar is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ...errors import RequestError
from ...maxima import SCHEMA_BYTES, SCHEMA_MULTIPLES, SCHEMA_NUMBER, SCHEMA_PROPERTIES


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
    multiples = 1
    for node in _values(schema):
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
