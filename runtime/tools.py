"""Tools of an answer: which functions it may call, and the grammar that holds it to their schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from ..errors import RequestError
from ..tasks.tools import CALL_BEGIN, CALL_END, read_functions
from .engine import Tokenizer
from .schema import SCHEMA_BYTES, Grammar, check_schema, compiled

_CALLS = 16  # of one answer, at most
_TEXT = f'start: TEXT | begin calls\nbegin[lazy]: TEXT "{CALL_BEGIN}"\nTEXT: /(.|\\n)*/'
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it: a call is rendered by the chat template as it was generated."""

_OPEN = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
}


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
        functions: that the prompt describes.
        forced: the answer is calls and no text.
        name: of the one function that it calls; None for any.
        parallel: it may have several calls.
    """

    functions: tuple[dict[str, Any], ...]
    forced: bool = False
    name: str | None = None
    parallel: bool = True

    @classmethod
    def read(cls, tools: Any, choice: Any, parallel: bool) -> Self | None:
        """Return what OpenAI's options ask for; None for no tools.

        Raises:
            RequestError: a tool is none, or the choice is.
        """
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
                raise RequestError(f"tool_choice names {name!r:.80}, which is no tool", param="tool_choice")
        raise RequestError(
            "tool_choice is none of 'none', 'auto', 'required' and "
            "{'type': 'function', 'function': {'name': ...}}",
            param="tool_choice",
        )

    def grammar(self, tokenizer: Tokenizer) -> Grammar:
        """Return what the answer may be, over the tokens of a model. Any thread may call it.

        Raises:
            RequestError: a schema becomes no grammar, or all of them are too large together.
            MissingExtraError, TinyLoraError: see `grammar_of`.
        """
        texts = dict[str, str]()
        for number, function in enumerate(self.functions):
            if self.name in (None, name := function["name"]):
                with _parameters_of(number, name):
                    texts[name] = check_schema({**_closed(function["parameters"]), "x-guidance": _FORM})
        if (size := sum(map(len, texts.values()))) > SCHEMA_BYTES:
            raise RequestError(
                f"the tools have {size:,} bytes of parameters, and at most {SCHEMA_BYTES:,} become a grammar",
                param="tools",
            )
        try:
            return compiled(self._lark(texts), tokenizer)
        except RequestError as error:
            whole = error
        for number, function in enumerate(self.functions):  # whose schema it is
            if (name := function["name"]) in texts:
                with _parameters_of(number, name):
                    compiled(self._lark({name: texts[name]}), tokenizer)
        raise RequestError(f"the tools together: {whole}", param="tools")

    def _lark(self, schemas: Mapping[str, str]) -> str:
        lines = [f'start: "{CALL_BEGIN}" calls' if self.forced else _TEXT]
        more = f'("\\n{CALL_BEGIN}" call){{0,{_CALLS - 1}}}' if self.parallel else ""
        lines.append(f"calls: call {more}")
        lines.append(f"call: {' | '.join(f'call{number}' for number in range(len(schemas)))}")
        for number, (name, schema) in enumerate(schemas.items()):
            begin = json.dumps(f'\n{{"name": "{name}", "arguments": ')
            lines.append(f"call{number}: {begin} %json {schema} {json.dumps(CALL_END)}")
        return "\n".join(lines)


@contextmanager
def _parameters_of(number: int, name: str) -> Iterator[None]:
    """Say of a schema that is refused whose parameters it is."""
    try:
        yield
    except RequestError as error:
        where = f"tools[{number}].function.parameters"
        raise RequestError(f"the parameters of {name!r}: {error}", param=where) from None


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have only the properties that they name, where it says nothing else."""
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
