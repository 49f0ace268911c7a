"""Tools of an answer: which functions it may call, and the grammar that holds it to their schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..errors import RequestError
from ..tasks.tools import CALL_BEGIN, CALL_END, read_functions
from .engine import Vocabulary
from .schema import Grammar, check_refs, check_schema, compiled

_CALLS = 16  # of one answer, at most
_TEXT = f'start: TEXT | begin calls\nbegin[lazy]: TEXT "{CALL_BEGIN}"\nTEXT: /(.|\\n)*/'
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it: no white space to choose, and what was said is what the model is shown later."""

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
        functions: that the model is told.
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

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        """Return what the answer may be, over the tokens of a model. Any thread may call it.

        Raises:
            RequestError: a schema becomes no grammar, or all of them are too large together.
            MissingExtraError, TinyLoraError: see `grammar_of`.
        """
        called = [each for each in self.functions if self.name in (None, each["name"])]
        schemas = {each["name"]: _closed(each["parameters"]) for each in called}
        try:
            check_schema(schemas)
            for schema in schemas.values():  # whose $ref begins at its own root
                check_refs(schema)
            return compiled(self._lark(schemas), vocabulary)
        except RequestError as error:
            whole = error
        for number, function in enumerate(self.functions):  # whose schema it is
            if (name := function["name"]) not in schemas:
                continue
            try:
                check_schema(schemas[name])
                check_refs(schemas[name])
                compiled(self._lark({name: schemas[name]}), vocabulary)
            except RequestError as error:
                where = f"tools[{number}].function.parameters"
                raise RequestError(f"the parameters of {name!r}: {error}", param=where) from None
        raise RequestError(f"the tools together: {whole}", param="tools")

    def _lark(self, schemas: Mapping[str, Any]) -> str:
        lines = [f'start: "{CALL_BEGIN}" calls' if self.forced else _TEXT]
        more = f'("\\n{CALL_BEGIN}" call){{0,{_CALLS - 1}}}' if self.parallel else ""
        lines.append(f"calls: call {more}")
        lines.append(f"call: {' | '.join(f'call{number}' for number in range(len(schemas)))}")
        for number, (name, schema) in enumerate(schemas.items()):
            begin = json.dumps(f'\n{{"name": "{name}", "arguments": ')
            body = json.dumps({**schema, "x-guidance": _FORM})
            lines.append(f"call{number}: {begin} %json {body} {json.dumps(CALL_END)}")
        return "\n".join(lines)


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
