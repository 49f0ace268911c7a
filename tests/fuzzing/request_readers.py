"""Harnesses of what a server's users send: bodies of requests, and the JSON schemas in them."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import Harness
from llguidance import LLTokenizer, TokenizerWrapper
from mutations import as_json, changed

from tinylora_edge import RequestError
from tinylora_edge.jsonio import parse_json
from tinylora_edge.limits import BODY_BYTES
from tinylora_edge.runtime.schema import grammar_of
from tinylora_edge.serve import Limits
from tinylora_edge.serve.completions import read_body

_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"enum": ["yes", "no", 3, None]},
    {"type": "string", "pattern": "^[A-Z](a?|b{2,9}){1,20}$", "minLength": 2, "maxLength": 90},
    {"type": "number", "minimum": -3.5, "maximum": 1e6, "multipleOf": 0.25},
    {"type": "array", "items": {"type": ["integer", "null"]}, "minItems": 1, "maxItems": 5},
    {"anyOf": [{"const": {"a": [1, "b"]}}, {"allOf": [{"type": "string"}, {"format": "date"}]}]},
    {
        "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}, "n": {"multipleOf": 7}}}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/node"}, "to": {"type": "boolean"}},
        "patternProperties": {"^x[0-9]+$": {"type": "integer"}},
        "required": ["from"],
        "additionalProperties": False,
    },
)

_CHAT: dict[str, Any] = {
    "model": "tiny@alice",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Name a colour."}]},
    ],
    "max_completion_tokens": 9,
    "temperature": 1,
    "top_p": 0.5,
    "n": 2,
    "seed": -1,
    "stop": ["\n", "."],
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 3,
    "user": "alice",
    "vector": "VEwB",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMAS[0]}},
}
_PLAIN: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "logprobs": 2, "echo": False}


def _make_request(random: Random) -> bytes:
    return as_json(changed(random.choice((_CHAT, _CHAT, _PLAIN)), random))


def _read_request(data: bytes) -> None:
    """Read it as a chat and as a completion: one of the two has to be refused."""
    try:
        body = parse_json(data, limit=BODY_BYTES)
    except ValueError as error:
        raise RequestError(str(error)) from None
    refused = []
    for chat in (True, False):
        try:
            request = read_body(body, chat=chat)
        except RequestError as error:
            refused.append(error)
        else:
            assert isinstance(request.text, list) == chat
            with suppress(RequestError):
                assert 1 <= request.options(Limits())["max_tokens"] <= Limits().tokens
    if len(refused) == 2:
        raise refused[0]


_STEPS = 12
_END = 256


class _Bytes:
    """Tokens of a byte each, and some longer ones that JSON has many of."""

    bos_token_id, eos_token_id, special_token_ids = None, _END, (_END,)
    tokens = (*(bytes([byte]) for byte in range(_END)), b"", *b'{" ": ", "} true aaaa 00'.split())

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _tokenizer() -> Any:
    tokens = LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=[_END])
    return SimpleNamespace(for_grammars=tokens, ends=_END.__eq__)


def _make_schema(random: Random) -> bytes:
    schema = changed(random.choice(_SCHEMAS), random) if random.random() < 0.5 else _drawn(random, 3)
    return as_json(schema)


def _drawn(random: Random, depth: int) -> dict[str, Any]:
    """Return a schema of any kinds, one within the other."""
    kind = random.randrange(9 if depth else 4)
    if kind == 0:
        return {"type": "string", "pattern": _pattern(random, 4), "maxLength": _count(random)}
    if kind == 1:
        return {"type": "string", "minLength": _count(random), "maxLength": _count(random)}
    if kind == 2:
        low = random.choice(("minimum", "exclusiveMaximum", "multipleOf"))
        high = random.choice(("maximum", "multipleOf"))
        return {"type": random.choice(("integer", "number")), low: _bound(random), high: _bound(random)}
    if kind == 3:
        return {"enum": [random.choice((None, True, _bound(random), "x" * _count(random), [], {"a": 1}))]}
    if kind == 4:
        items = {"items": _drawn(random, depth - 1), "minItems": _count(random), "maxItems": _count(random)}
        return {"type": "array", **items, "prefixItems": [_drawn(random, depth - 1)] * random.randrange(3)}
    if kind == 5:
        names = [_pattern(random, 1) for _ in range(random.randrange(4))]
        own = {name: _drawn(random, depth - 1) for name in names}
        return {"properties": own, "required": names[:1], "additionalProperties": random.random() < 0.5}
    if kind == 6:
        return {"patternProperties": {_pattern(random, 2): _drawn(random, depth - 1)}}
    if kind == 7:
        return {
            "$defs": {"a": _drawn(random, depth - 1)},
            "items": {"$ref": random.choice(("#", "#/$defs/a"))},
        }
    some = [_drawn(random, depth - 1) for _ in range(random.randrange(4))]
    return {random.choice(("anyOf", "allOf", "oneOf")): some}


def _pattern(random: Random, depth: int) -> str:
    if not depth:
        atoms = ("", "a", "b", ".", "[^a]", "[a-z0-9]", r"\d", r"\w", r"\s", "é", r"\.", "^", "$", "(?i:x)")
        return random.choice(atoms)
    parts = [_pattern(random, depth - 1) for _ in range(random.choice((1, 2, 3)))]
    joined = random.choice(("", "", "|")).join(parts)
    times = random.choice(("", "?", "*", "+", f"{{{_count(random)}}}", f"{{0,{_count(random)}}}"))
    return f"({joined}){times}"


def _count(random: Random) -> int:
    return random.choice((0, 1, 2, 3, 9, 30, 200, 1000, 65_536))


def _bound(random: Random) -> float:
    return random.choice((-1, 1)) * random.choice((0, 1, 7, 0.1, 2.5, 99.75, 1e-7, 12345, 1e6, 2**31, 2**53))


def _read_schema(data: bytes) -> None:
    """Make a grammar of it, and let it write: what it says of one token, it says of all."""
    try:
        schema = parse_json(data, limit=BODY_BYTES)
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not isinstance(schema, dict):
        raise RequestError("no schema")
    grammar, random = grammar_of(schema, _tokenizer()), Random(len(data))
    for _ in range(_STEPS):
        allowed = np.flatnonzero(np.isfinite(grammar.masked(np.zeros(len(_Bytes.tokens), np.float32))))
        assert allowed.size, "an answer that can neither go on nor end"
        token = int(random.choice(allowed))
        assert grammar.allows(token)
        if token == _END:
            return
        grammar.accept(token)


HARNESSES = (Harness("request", _make_request, _read_request), Harness("schema", _make_schema, _read_schema))
