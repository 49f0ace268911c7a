"""Grammars that an answer keeps to, by llguidance over a model's tokens: of a schema, labels, or tool calls.

llama.cpp's own grammars are not used: a short pattern keeps them busy for minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import MissingExtraError, RequestError, TinyLoraError
from tinylora_edge.tasks.sample import CALL_BEGIN, CALL_END, CLOSING, OPENING, read_functions

from .compiling import MEGABYTES, SECONDS, why_not
from .engine import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

Schema: TypeAlias = Mapping[str, Any] | Sequence[str]
"""A JSON schema, or labels, one of which is the whole answer; an empty schema is any JSON object."""

SCHEMA_BYTES = 1 << 16
"""Bytes of a JSON schema that an answer keeps to."""

SCHEMA_PARTS = 400
"""Most schemas within a schema, each $ref written out. The parser may follow all of them side by side, which
takes some ms a token; with schemas that refer to themselves a token would take a second."""

_LIMITS = {
    "max_lexer_states": 1 << 14,
    "step_lexer_fuel": 20_000,
    "step_max_items": 50_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
"""Limits of llguidance's parser. States of its automaton take about 1 kB each; a text with a bounded length
needs ten for each token. The work for one token is limited to some ms. Making a grammar has other limits: see
`compiling`."""

_CALLS = 16  # most calls of one answer
_TEXT = f'start: TEXT | begin calls | untagged\nbegin[lazy]: TEXT "{CALL_BEGIN}"\nTEXT: /(.|\\n)*/'
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it: a call is rendered by the chat template as it was generated."""
_COMPACT = _FORM | {"item_separator": ", ?", "key_separator": ": ?"}
"""JSON in one line: where white space is free, some models write white space without end."""

_OPEN = {"additionalProperties", "allOf", "anyOf", "oneOf", "$ref"}


def grammar_of(schema: Schema, tokenizer: Tokenizer, left: Callable[[], bool] = lambda: False) -> Grammar:
    """Return the grammar of a schema over the tokens of a model. Any thread may call it.

    `left` tells whether nobody waits for it any more.

    Raises:
        RequestError: llguidance makes no grammar of it, it takes too much, or a label is no text.
        MissingExtraError: llguidance is not installed.
        Left: nobody waits.
        TinyLoraError: llguidance does not read the model's tokens, or its process has ended.
    """
    if isinstance(schema, Mapping):
        text = check_schema(schema or {"type": "object"}, _COMPACT)
        return compiled(f"start: %json {text}", tokenizer, left)
    return compiled(_choice(schema), tokenizer, left)


def compiled(text: str, tokenizer: Tokenizer, left: Callable[[], bool]) -> Grammar:
    """Return the grammar of a text in llguidance's form of Lark. Errors: those of `grammar_of`."""
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ModuleNotFoundError as error:
        if error.name != "llguidance":
            raise
        raise MissingExtraError("a schema", "llguidance", "schema") from None
    # Without `no_forcing` llguidance tokenizes, at each token, all of a text that alone may follow.
    grammar = LLMatcher.grammar_from_lark(f'%llguidance {{"no_forcing": true}}\n{text}')
    try:
        why = why_not(grammar, _LIMITS, left)
    except OSError as error:
        raise TinyLoraError(f"no grammar can be made: {error}") from error
    if why is None:
        raise _refused(
            f"the grammar of this schema takes more than {SECONDS} s or {MEGABYTES} MB to make: ask for less"
        )
    if why:
        raise _no_grammar(why)
    limits: Any = LLParserLimits(**_LIMITS)
    return Grammar(LLMatcher(tokenizer.for_grammars, grammar, log_level=0, limits=limits), tokenizer.ends)


class Grammar:
    """What an answer may go on with, by a matcher at its start. `ends` tells whether a token ends an answer.

    One thread uses it. RequestError: the matcher has an error, since its grammar is not valid.
    """

    def __init__(self, matcher: LLMatcher, ends: Callable[[int], bool]) -> None:
        self._matcher, self._ends = matcher, ends
        self._check()

    def copy(self) -> Grammar:
        """Return a copy for another answer, at the same place; any thread may call it."""
        return Grammar(self._matcher.deep_copy(), self._ends)

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        if self._ends(token):
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [vocabulary] with -infinity for all tokens that may not come next.

        RequestError: none may come next, or the parser reaches one of its limits.
        """
        allowed = np.unpackbits(self._bits(), count=len(logits), bitorder="little").astype(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def along(self, tokens: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return what is allowed in the place of each token of an answer that begins here.

        For each place that is a bit for each token of the vocabulary, token 0 in the lowest bit of the first
        byte. The grammar itself does not move on.
        """
        at, found = self.copy(), list[NDArray[np.uint8]]()
        for token in tokens:
            found.append(at._bits())
            if not self._ends(token):
                at.accept(token)
        return found

    def _bits(self) -> NDArray[np.uint8]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return bits

    def accept(self, token: int) -> None:
        """Go on after a token, which is allowed and does not end the answer. Errors: those of `masked`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            if self._matcher.get_error().startswith("NoExtensionBias"):
                raise _refused("the model has no token that the schema allows here")
            raise _no_grammar(self._matcher.get_error())


@dataclass(frozen=True)
class ToolCall:
    """A call in an answer: its number there, the function's name, and its arguments as JSON text."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Tools:
    """The functions that an answer may call.

    Attributes:
        functions: those that the prompt describes.
        forced: the answer is calls and no text.
        name: the one function that it may call; None for any.
        parallel: it may have several calls.
    """

    functions: tuple[dict[str, Any], ...]
    forced: bool = False
    name: str | None = None
    parallel: bool = True

    @classmethod
    def read(cls, tools: Any, choice: Any, parallel: bool) -> Self | None:
        """Return what OpenAI's options ask for; None for no tools. RequestError: a tool is not a function, or
        the choice is none of the tools."""
        functions = read_functions(tools or ())
        if not functions and choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools", param="tool_choice")
        match choice:
            case None | "auto" | "required":
                return cls(functions, choice == "required", None, parallel) if functions else None
            case "none":
                return None
            case {"type": "function", "function": {"name": str(name)}}:
                if any(each["name"] == name for each in functions):
                    return cls(functions, True, name, False)
                raise RequestError(
                    f"tool_choice names {name!r:.80}, which is not among the tools", param="tool_choice"
                )
        raise RequestError(
            "tool_choice is none of 'none', 'auto', 'required' and "
            "{'type': 'function', 'function': {'name': ...}}",
            param="tool_choice",
        )

    def grammar(self, tokenizer: Tokenizer, left: Callable[[], bool] = lambda: False) -> Grammar:
        """Return the grammar of the answer over the tokens of a model. Any thread may call it. RequestError:
        a schema becomes no grammar, or all of them are too large; others are those of `grammar_of`."""
        texts = dict[str, str]()
        for number, function in enumerate(self.functions):
            if self.name in (None, name := function["name"]):
                with _parameters_of(number, name):
                    texts[name] = check_schema(_closed(function["parameters"]), _FORM)
        if (size := sum(map(len, texts.values()))) > SCHEMA_BYTES:
            raise RequestError(
                f"the tools have {size:,} bytes of parameters, and at most {SCHEMA_BYTES:,} become a grammar",
                param="tools",
            )
        lark = self._lark(texts)
        try:
            return compiled(lark, tokenizer, left)
        except RequestError as error:
            line = re.search(r": at (\d+)\(", str(error))  # `compiled` puts a line before the first one
            at = line and re.match(r"arguments(\d+):", lark.splitlines()[int(line[1]) - 2])
            if at is None:
                raise RequestError(f"the tools together: {error}", param="tools") from None
            name, names = [*texts][int(at[1])], [each["name"] for each in self.functions]
            with _parameters_of(names.index(name), name):
                raise

    def _lark(self, schemas: Mapping[str, str]) -> str:
        lines = [f'start: "{CALL_BEGIN}" calls' if self.forced else _TEXT]
        more = f'("\\n{CALL_BEGIN}" call){{0,{_CALLS - 1}}}' if self.parallel else ""
        lines.append(f"calls: call {more}")
        for kind in ["call"] if self.forced else ["call", "untagged"]:
            lines.append(f"{kind}: {' | '.join(f'{kind}{number}' for number in range(len(schemas)))}")
        for number, (name, schema) in enumerate(schemas.items()):
            begin = json.dumps(f'\n{{"name": "{name}", "arguments": ')
            lines.append(f"arguments{number}: %json {schema}")
            lines.append(f"call{number}: {begin} arguments{number} {json.dumps(CALL_END)}")
            if not self.forced:
                lines.append(f"open{number}[lazy]: /{OPENING.format(name)}/")
                lines.append(f'untagged{number}: open{number} " "? arguments{number} /{CLOSING}/')
        return "\n".join(lines)

    def openings(self) -> tuple[re.Pattern[str], list[str]]:
        """Return a pattern of how calls without tags begin in an answer that may have text, and all such
        beginnings without white space."""
        names = [] if self.forced else [each["name"] for each in self.functions]
        keys, fences = ("arguments", "parameters"), ("", "```", "```json")
        texts = [f'{fence}{{"name":"{name}","{key}":' for name in names for key in keys for fence in fences]
        return re.compile(OPENING.format(f"(?:{'|'.join(names)})")), texts


@contextmanager
def _parameters_of(number: int, name: str) -> Iterator[None]:
    """Name the function in the error of a schema that is refused."""
    try:
        yield
    except RequestError as error:
        where = f"tools[{number}].function.parameters"
        raise RequestError(f"the parameters of {name!r}: {error}", param=where) from None


def _closed(schema: Any) -> Any:
    """Return a schema that allows no other properties than those that it names, unless it says otherwise."""
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(named := schema.get(key), Mapping):
            result[key] = {name: _closed(inner) for name, inner in named.items()}
    if "items" in schema:
        result["items"] = _closed(schema["items"])
    named, needed = result.get("properties"), result.get("required", [])
    if isinstance(named, dict) and isinstance(needed, list) and not result.keys() & _OPEN:
        result["additionalProperties"] = not {*map(str, needed)} <= named.keys()
    return result


def check_schema(schema: Mapping[str, Any], guidance: Mapping[str, Any]) -> str:
    """Return a schema as JSON, each $ref written out. `guidance` tells llguidance the form of the answer.

    RequestError: it is no JSON, or has too many bytes or parts.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
        plain = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:  # a schema from an app may hold anything
        raise _refused(f"the schema is not JSON: {error}") from None
    if len(text) > SCHEMA_BYTES:
        raise _refused(
            f"the JSON schema has {len(text):,} bytes, and at most {SCHEMA_BYTES:,} become a grammar"
        )
    named = {
        f"#/{key}/{name}": each
        for key in ("$defs", "definitions")
        if isinstance(some := plain.get(key), dict)
        for name, each in some.items()
    }
    return json.dumps({**_written_out(plain, named, count(1)), "x-guidance": guidance})


def _written_out(
    node: Any, named: Mapping[str, Any], parts: Iterator[int], within: tuple[str, ...] = ()
) -> Any:
    """Return a schema in which each $ref is replaced by the schema that it names; `parts` counts schemas.

    RequestError: a $ref leads to nothing, or back to itself, or there are too many schemas.
    """
    if not isinstance(node, dict):  # true, false, or what llguidance refuses
        return node
    if next(parts) > SCHEMA_PARTS + 1:
        raise _refused(f"the JSON schema has more than {SCHEMA_PARTS} schemas in it, each $ref written out")
    found = {key: value for key, value in node.items() if key not in ("$ref", "$defs", "definitions")}
    for key, value in found.items():
        if key in ("items", "additionalItems", "additionalProperties") and isinstance(value, dict):
            found[key] = _written_out(value, named, parts, within)
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems", "items") and isinstance(value, list):
            found[key] = [_written_out(each, named, parts, within) for each in value]
        elif key in ("properties", "patternProperties") and isinstance(value, dict):
            found[key] = {name: _written_out(each, named, parts, within) for name, each in value.items()}
    if "$ref" not in node:
        return _without_minus_zero(found)
    name = str(node["$ref"])
    if name not in named or name in within:
        why = "leads back to itself" if name in within else "is no '#/$defs/NAME' of it"
        raise _refused(f"the $ref {name[:80]!r} in the JSON schema {why}, and a grammar cannot be made of it")
    there = _written_out(named[name], named, parts, (*within, name))
    return {"allOf": [there, found] if found else [there]}


def _without_minus_zero(node: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of numbers as two: numbers from 0 on, and numbers below 0. Neither allows `-0`.

    Other schemas are returned as they are: those of no numbers, those with keywords in `others`, and those
    whose bounds make llguidance refuse `-0` by itself.
    """
    types = node["type"] if isinstance(node.get("type"), list) else [node.get("type")]
    kind = next((kind for kind in ("number", "integer") if kind in types), None)
    others = {"enum", "const", "anyOf", "oneOf", "allOf", "exclusiveMinimum", "exclusiveMaximum"}
    bounds = [node[name] for name in ("minimum", "maximum") if name in node]
    if kind is None or node.keys() & others or not all(isinstance(each, int | float) for each in bounds):
        return node
    if bounds and (kind == "number" or len(bounds) == 1 or not bounds[0] < 0 <= bounds[1]):
        return node
    below: dict[str, Any] = {"maximum": -1} if kind == "integer" else {"exclusiveMaximum": 0}
    rest = [each for each in types if each not in ("number", "integer")]
    parts = [{**node, "type": kind, "minimum": 0}, {**node, "type": kind, **below}]
    return {"anyOf": [*parts, *([{**node, "type": rest}] if rest else [])]}


def _choice(labels: Sequence[str]) -> str:
    """Return the grammar of labels, in llguidance's form of Lark."""
    if isinstance(labels, str) or not labels or not all(isinstance(each, str) and each for each in labels):
        raise _refused(
            f"the labels are {str(labels)[:100]!r}: pass a list of texts that are not empty, or a JSON schema"
        )
    text = "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in dict.fromkeys(labels))
    if (size := len(text.encode(errors="replace"))) > SCHEMA_BYTES:
        raise _refused(
            f"{len(labels):,} labels have {size:,} bytes, and at most {SCHEMA_BYTES:,} become a grammar"
        )
    return text


def _no_grammar(why: str) -> RequestError:
    return _refused(f"llguidance makes no grammar of this schema: {' '.join(why.split())[:200]}")


def _refused(why: str) -> RequestError:
    return RequestError(why, param="response_format")
