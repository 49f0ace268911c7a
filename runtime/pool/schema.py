"""JSON schemas that answers keep to: what one may have before an engine makes a grammar of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ...errors import RequestError
from ...maxima import SCHEMA_BYTES, SCHEMA_PROPERTIES, SCHEMA_REPEATS

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_REPEATED = re.compile(r"\{\d*,?(\d+)\}")


def schema_text(schema: Mapping[str, Any]) -> str:
    """Return a schema as JSON, once its size is checked.

    Raises:
        RequestError: it is too large, or is no JSON.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:  # of an app: what came over HTTP was JSON
        raise RequestError(f"the schema is no JSON: {error}", param="response_format") from None
    if len(text) > SCHEMA_BYTES:
        raise RequestError(
            f"the JSON schema has {len(text):,} bytes, and at most {SCHEMA_BYTES:,} become a grammar",
            param="response_format",
        )
    _check_size(schema)
    return text


def no_grammar(engine: str, why: str) -> RequestError:
    """Return the error of a schema that an engine makes no grammar of."""
    return RequestError(f"{engine} makes no grammar of this JSON schema: {why}", param="response_format")


def _check_size(node: Any) -> None:
    if isinstance(node, Mapping):
        properties = node.get("properties")
        if isinstance(properties, Mapping) and len(properties) > SCHEMA_PROPERTIES:
            raise RequestError(
                f"an object of the JSON schema has {len(properties):,} properties, and at most "
                f"{SCHEMA_PROPERTIES} become a grammar",
                param="response_format",
            )
        counts = [count for name in _COUNTS if isinstance(count := node.get(name), int)]
        if isinstance(pattern := node.get("pattern"), str):
            counts.append(math.prod(int(count[-9:]) or 1 for count in _REPEATED.findall(pattern)))
        if max(counts, default=0) > SCHEMA_REPEATS:
            raise RequestError(
                f"the JSON schema repeats a part {max(counts):,} times, and at most {SCHEMA_REPEATS:,} times "
                "become a grammar",
                param="response_format",
            )
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _check_size(inner)
