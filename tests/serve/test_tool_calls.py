"""Tools over HTTP: the real client of OpenAI against the real server, the real model and a graph in ONNX."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import onnx_bundles
import openai
import pytest
from serving import Serving, serving

CHAT = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
ADD: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in "ab"},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "add": ADD}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    parameters = SCHEMAS.get(name, {"type": "object"}) if parameters is None else parameters
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True} | more}


TOOLS = [tool("get_weather", description="The weather of a city"), tool("add", description="Add two numbers")]


@pytest.fixture(scope="module", params=["llama", "onnx"])
def server(request, smollm2_bundle, tmp_path_factory):
    bundle = smollm2_bundle if request.param == "llama" else onnx_bundles.writes_tools()
    options = ("--name", "tested", "--n-ctx", "500")
    with serving(tmp_path_factory.mktemp("server"), bundle, *options) as running:
        yield running


def ask(client: openai.OpenAI, **options: Any) -> Any:
    body: Any = {"messages": QUESTION, "tools": TOOLS, "temperature": 0, "max_tokens": 150} | options
    return client.chat.completions.create(model="tested", **body)


def whole(message: Any) -> list[tuple[str, str]]:
    """The calls of a message, each with arguments that keep to its schema."""
    calls = message.tool_calls or []
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert len({call.id for call in calls}) == len(calls)
    return [(call.function.name, call.function.arguments) for call in calls]


def test_calls_in_openais_form(client: openai.OpenAI) -> None:
    choice = ask(client, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert len(whole(choice.message)) == 1
    named = {"type": "function", "function": {"name": "add"}}
    two = ask(client, tool_choice=named, n=2, temperature=1, seed=3).choices
    assert [[name for name, _ in whole(each.message)] for each in two] == [["add"], ["add"]]
    assert not {c.id for c in two[0].message.tool_calls} & {c.id for c in two[1].message.tool_calls}
    text = ask(client, messages=[{"role": "user", "content": "Hi!"}], tool_choice="none", max_tokens=5)
    assert text.choices[0].message.tool_calls is None
    assert text.choices[0].message.content
    assert text.usage.prompt_tokens < 60, "it is not told of them"
    free = ask(client, max_tokens=5).choices[0]
    assert (free.message.tool_calls, free.finish_reason) == (None, "length")


def test_a_streams_deltas_are_the_whole_answer(client: openai.OpenAI) -> None:
    options = {"tool_choice": "required", "max_tokens": 150}
    expected = ask(client, **options).choices[0]
    with client.chat.completions.stream(
        model="tested", messages=QUESTION, tools=TOOLS, temperature=0, **options
    ) as stream:  # type: ignore[call-overload]
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        found = stream.get_final_completion().choices[0]
    assert whole(found.message) == whole(expected.message)
    assert found.finish_reason == expected.finish_reason
    deltas = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert [(part.index, bool(part.id), bool(part.function.arguments)) for part in deltas] == [
        (index, first, not first) for index in range(len(whole(expected.message))) for first in (True, False)
    ]


def test_half_a_call_is_none(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"tool_choice": "required", "max_tokens": 16}
    choice = ask(client, **options).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls, choice.message.content) == ("length", None, "")
    deltas = [chunk.choices[0].delta for chunk in ask(client, **options, stream=True)]
    assert not [delta for delta in deltas if delta.tool_calls or delta.content]


def test_the_result_of_a_tool_is_read(client: openai.OpenAI, request: pytest.FixtureRequest) -> None:
    """A round trip: the answer's own message goes back with its result."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    first = ask(client, tool_choice=named).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "It is 21 degrees."}
    without, answer = (
        ask(client, messages=messages, max_tokens=30, tool_choice="none")
        for messages in (QUESTION, [*QUESTION, first, result])
    )
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens + 20
    if "llama" in request.node.name:
        assert json.loads(first.tool_calls[0].function.arguments)["city"] == "Paris"
        assert "21" in answer.choices[0].message.content


BOMB = {"anyOf": [{"type": "integer", "multipleOf": number} for number in (9000, 9001, 9002)]}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no such type", {"tools": [TOOLS[0], tool("f", {"properties": {"a": {"type": "x"}}})]}, "of 'f'"),
    ("an array", {"tools": [tool("f", {"type": "array"})]}, "no JSON schema of an object"),
    ("129", {"tools": [tool(f"f{number}") for number in range(129)]}, "129 tools, and at most 128"),
    ("120", {"tools": [tool(f"f{number}") for number in range(120)]}, "context 500"),
    ("a space", {"tools": [tool("two words")]}, "'two words': it must have 1 to 64 letters"),
    ("long", {"tools": [tool("x" * 65)]}, "it must have 1 to 64 letters"),
    ("no name", {"tools": [{"type": "function", "function": {}}]}, "name is None"),
    ("no function", {"tools": [{"type": "custom"}]}, "tools[0] is {'type': 'custom'}, expected "),
    ("twice", {"tools": [TOOLS[0], TOOLS[0]]}, "two tools have the name 'get_weather'"),
    ("unknown", {"tool_choice": {"type": "function", "function": {"name": "g"}}}, "'g', which is not among"),
    ("a choice", {"tool_choice": "any"}, "tool_choice is none of"),
    ("no tools", {"tools": [], "tool_choice": "required"}, "tool_choice needs tools"),
    ("a result", {"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]}, "no such call"),
    ("large", {"tools": [tool("f", {"properties": {"a": {"enum": ["x" * 70_000]}}})]}, "context 500"),
    ("multiples", {"tools": [tool("f", {"properties": {"a": BOMB}})]}, "takes more than"),
    ("functions", {"functions": [TOOLS[0]["function"]]}, "functions is not supported"),
    ("a format", {"response_format": {"type": "json_object"}}, "keeps to a schema or calls tools"),
    ("not true", {"parallel_tool_calls": 1}, "valid boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_tools_that_are_refused(server: Serving, change: dict[str, Any], message: str) -> None:
    body = {"model": "tested", "messages": QUESTION, "tools": TOOLS, "max_tokens": 4}
    status, answer = server.ask("POST", CHAT, body | change)
    assert status == 400, answer
    assert message in answer["error"]["message"]
    assert answer["error"]["param"].split("[")[0] in change.keys() | {"messages"}
