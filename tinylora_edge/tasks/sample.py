"""Prompts of samples and requests: messages, and functions that a model may call, both in OpenAI's form.

A call is text in the form that most open models learned (Hermes, Qwen):

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

A chat template that knows tools and this form renders them itself; for any other template they become text
in messages. Qwen2.5-Coder and Llama 3 leave the tags out, and may write `parameters` or a fence of Markdown:
an answer that is one such object is a call, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from ..errors import RequestError, TrainError
from ..jsonio import parse_json

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""Text, or chat messages with `role` and `content`; calls of tools and their results as OpenAI has them."""

FUNCTIONS = 128
"""Functions of a request: OpenAI's own limit."""

CALL_BEGIN, CALL_END = "<tool_call>", "}\n</tool_call>"
"""What a call begins and ends with. The end is in no arguments: JSON strings have no line breaks."""

CALL = re.compile(r'\n?<tool_call>\n\{"name": "([\w-]+)", "arguments": (\{.*\})\}\n</tool_call>')
"""A whole call; its groups are the name, and the arguments as JSON."""

OPENING = r'\s*(?:```\s*(?:json\s*)?)?\{{\s*"name"\s*:\s*"{}"\s*,\s*"(?:arguments|parameters)"\s*:'
CLOSING = r"\s{0,20}\}(?:\s{0,20}```)?"
"""What a call without tags has before its arguments, and a space, and behind them; {} is for the name."""

_UNTAGGED = re.compile(OPENING.format(r"([\w-]+)") + r" ?(\{.*\})" + CLOSING + r"\s*", re.S)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_EXPLAINED = """You can call these functions:
<tools>
{functions}
</tools>
To call one, answer with its name and arguments, and nothing else:
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>"""


@dataclass(frozen=True)
class Sample:
    """One prompt.

    Attributes:
        prompt: text, which is one message of the user, or chat messages (`{"role": ..., "content": ...}`);
            both go through the model's chat template.
        answer: the reference answer where there is one: rewards compare with it, SFT learns it.
        data: whatever else a reward needs. Treat it as read-only.
        raw: the text goes past the chat template, and the model continues it as it stands.
        without_preamble: where its prompt begins with a preamble, the sample without it, which is what
            rewards see; else None.
        tools: functions that the model may call, as `read_functions` returns them.
        earlier: of a text without a prompt: texts before it, each with its end.
    """

    prompt: str | tuple[dict[str, Any], ...]
    answer: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    without_preamble: Sample | None = None
    tools: tuple[dict[str, Any], ...] = ()
    earlier: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.raw and not isinstance(self.prompt, str):
            raise TrainError("a raw prompt is text, but this one is chat messages, which a template renders")

    @classmethod
    def of(cls, prompt: Prompt | Sample, *, raw: bool = False) -> Sample:
        """Return a text or chat messages (copied) as a sample; a sample is returned unchanged."""
        if isinstance(prompt, Sample):
            return prompt
        copied = prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)
        return cls(copied, raw=raw)

    def rendered_by(self, *, template: bool) -> str | tuple[dict[str, Any], ...]:
        """Return messages for a model with a chat template, or text to continue."""
        if isinstance(self.prompt, str) and (template or self.tools) and not self.raw:
            return ({"role": "user", "content": self.prompt},)
        return self.prompt

    @property
    def unprompted(self) -> bool:
        """Whether the sample is a text without a prompt. The text is its `answer`, at the start of a
        sequence."""
        return self.raw and not self.prompt and self.answer is not None

    @property
    def text(self) -> str:
        """The words of the prompt, which an answer could echo. Messages are joined by newlines.

        What has no prompt is known by its answer.
        """
        if self.unprompted:
            return str(self.answer)
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message.get("content") or "" for message in self.prompt)  # calls have no content


class TemplateInput(NamedTuple):
    """What a chat template takes: messages, and the tools where it renders them itself."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def read_functions(tools: Any) -> tuple[dict[str, Any], ...]:
    """Return the functions of tools in OpenAI's form: `name`, `description`, `parameters` (a JSON schema).

    RequestError: a tool is none, or there are too many.
    """
    if not isinstance(tools, list | tuple):
        raise RequestError("tools is no list", param="tools")
    if len(tools) > FUNCTIONS:
        raise RequestError(f"there are {len(tools)} tools, and at most {FUNCTIONS} may be", param="tools")
    result: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            form = '{"type": "function", "function": {"name": ...}}'
            raise RequestError(f"{where} is {tool!r:.80}, expected {form}", param=where)
        where += ".function"
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise RequestError(f"{where} is no object", param=where)
        name, about, parameters = (function.get(key) for key in ("name", "description", "parameters"))
        if not isinstance(name, str) or not _NAME.match(name):
            raise RequestError(
                f"{where}.name is {name!r:.80}: it must have 1 to 64 letters, digits, _ and - alone",
                param=f"{where}.name",
            )
        if name in result:
            raise RequestError(f"two tools have the name {name!r}", param=f"{where}.name")
        if not isinstance(about, str | None):
            raise RequestError(f"{where}.description is no text", param=f"{where}.description")
        if not isinstance(parameters, Mapping | None) or (parameters or {}).get("type", "object") != "object":
            raise RequestError(
                f"{where}.parameters is no JSON schema of an object", param=f"{where}.parameters"
            )
        result[name] = {"name": name, **({"description": about} if about else {})}
        result[name]["parameters"] = {"type": "object", **(parameters or {"properties": {}})}
    return tuple(result.values())


def template_input(
    messages: Sequence[Mapping[str, Any]], functions: Sequence[dict[str, Any]], *, own: bool
) -> TemplateInput:
    """Return messages and functions as a chat template takes them; `own`: it renders tools itself.

    RequestError: a call of a message is malformed, or a tool's message answers no call.
    """
    open_calls, result = set[str](), list[dict[str, Any]]()
    for number, message in enumerate(messages):
        where, role = f"messages[{number}]", message.get("role")
        calls = message.get("tool_calls") or ()
        if calls:
            if role != "assistant" or not isinstance(calls, list | tuple):
                raise RequestError(f"{where}.tool_calls is no list of an assistant", param=where)
            made = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
            open_calls = {call["id"] for call in made}
            text = message.get("content") or ""
            if own:
                result.append({**message, "content": text, "tool_calls": made})
                continue
            texts = [text, *(spelled(**call["function"]) for call in made)]
            result.append({"role": role, "content": "\n".join(filter(None, texts))})
        elif role == "tool":
            answered = message.get("tool_call_id")
            if answered not in open_calls:
                raise RequestError(
                    f"{where} has the tool_call_id {answered!r:.80}, and the assistant's message before it "
                    "has no such call that is not answered yet",
                    param=f"{where}.tool_call_id",
                )
            open_calls.remove(answered)
            if own:
                result.append(dict(message))
                continue
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if messages[number - 1].get("role") == "tool":  # results of one turn are one message
                result[-1]["content"] += f"\n{text}"
            else:
                result.append({"role": "user", "content": text})
        else:
            open_calls = set()
            result.append(dict(message))
    if own or not functions:
        return TemplateInput(result, [{"type": "function", "function": each} for each in functions] or None)
    lines = "\n".join(json.dumps(each, ensure_ascii=False) for each in functions)
    text = _EXPLAINED.format(functions=lines)
    if result and result[0].get("role") == "system":
        result[0]["content"] += f"\n\n{text}"
    else:
        result.insert(0, {"role": "system", "content": text})
    return TemplateInput(result, None)


def spelled(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as text."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL_BEGIN}\n{body}\n</tool_call>"


def without_tags(text: str) -> str | None:
    """Return a text that is one call without its tags, as a fence of JSON; None for any other text."""
    if (call := CALL.fullmatch(text)) is None:
        return None
    made = {"name": call[1], "arguments": parse_json(call[2])}
    return f"```json\n{json.dumps(made, indent=2, ensure_ascii=False)}\n```"


def untagged(text: str) -> tuple[str, str] | None:
    """Return the name and the arguments, as JSON, of an answer that is one whole call without tags; None for
    any other answer."""
    if (call := _UNTAGGED.fullmatch(text)) is None:
        return None
    try:
        parse_json(call[2])
    except ValueError:  # the answer was cut, and the last brace is that of an object in the arguments
        return None
    return call[1], call[2]


def renders_tools(template: str) -> bool:
    """Tell whether a chat template writes tools, and their calls in the form of this module."""
    return CALL_BEGIN in template and re.search(r"\btools\b", template) is not None


def _call(call: Any, where: str) -> dict[str, Any]:
    """Return a message's call with its arguments as an object, which templates expect."""
    match call:
        case {"id": str(it), "type": "function", "function": {"name": str(name), "arguments": arguments}}:
            try:
                arguments = parse_json(arguments, strict=True) if isinstance(arguments, str) else arguments
            except ValueError:
                arguments = None
            if isinstance(arguments, dict):
                return {"id": it, "type": "function", "function": {"name": name, "arguments": arguments}}
    raise RequestError(
        f"{where} is not a call: a call has an id, the type 'function', and function with name and "
        "arguments, the JSON text of an object",
        param=where,
    )
