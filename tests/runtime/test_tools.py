"""Tools on both engines: what a model reads, calls that keep to schemas, and calls as they come in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import onnx_bundles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from tinylora_edge import RequestError
from tinylora_edge.runtime import Pool, batch
from tinylora_edge.runtime.answers import Answer, Text
from tinylora_edge.runtime.schema import Tools
from tinylora_edge.tasks import Sample
from tinylora_edge.tasks.sample import read_functions, spelled, template_input

MESSAGES = [{"role": "user", "content": "x"}]
NUMBER = {"type": "number", "minimum": -2, "maximum": 99, "multipleOf": 0.5}
POINT = {"type": "object", "properties": {"x": NUMBER, "y": NUMBER}, "required": ["x", "y"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": {"type": "object", "properties": {"a": {"enum": ["C", "F", 3, None]}}, "required": ["a"]},
    "nested": {"type": "object", "properties": {"from": POINT, "to": POINT}, "required": ["from", "to"]},
    "array": {
        "type": "object",
        "properties": {"of": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}},
        "required": ["of"],
    },
    "optional": {
        "properties": {"a": {"type": "string", "maxLength": 6}, "b": {"type": "boolean"}, "c": NUMBER},
        "required": ["b"],
    },
    "by-name_9": {
        "$defs": {"point": POINT},
        "type": "object",
        "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 1}},
    },
}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name} | ({} if parameters is None else {"parameters": parameters})
    return {"type": "function", "function": function | more}


@pytest.fixture(scope="module")
def onnx_pool() -> Iterator[Pool]:
    with Pool(onnx_bundles.writes_tools(), slots=6, n_ctx=500, n_threads=1) as opened:
        yield opened


@pytest.fixture
def llama_pool(tiny_bundle: Path) -> Iterator[Pool]:
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    handler = Jinja2ChatFormatter(template, eos_token="", bos_token="").to_chat_handler()
    with Pool(tiny_bundle, slots=3, n_ctx=1200, n_threads=1, chat_handler=handler) as opened:
        yield opened


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_calls_keep_to_their_schemas(pool: Pool, temperature: float) -> None:
    async def answers() -> list[Answer]:
        calls = (
            pool.chat(MESSAGES, tools=[tool(name, schema)], tool_choice="required", seed=seed,
                      temperature=temperature, parallel_tool_calls=False)
            for seed, (name, schema) in enumerate(SCHEMAS.items())
        )  # fmt: skip
        return await asyncio.gather(*calls)

    for answer, (name, schema) in zip(asyncio.run(answers()), SCHEMAS.items(), strict=True):
        assert (answer.text, answer.finish.reason) == ("", "tool_calls")
        (call,) = answer.calls
        assert call.name == name
        arguments = json.loads(call.arguments)
        jsonschema.validate(arguments, schema)
        assert arguments.keys() <= schema["properties"].keys(), "what a schema does not name stays out"


def test_a_batch_holds_answers_to_the_tools_of_their_prompts(onnx_pool, monkeypatch):
    monkeypatch.setattr(batch, "Tools", partial(Tools, forced=True))  # or a text may come first
    asked = [Sample("x", tools=read_functions([tool(name) for name in names])) for names in ("f", "g", "")]
    with onnx_pool.model.batch(asked, 40) as opened:
        (answers,) = opened.answer_each([None], asked, max_tokens=40)
    called = [re.match(r'<tool_call>\n\{"name": "(.)', answer.text) for answer in answers]
    assert [each and each[1] for each in called] == ["f", "g", None]


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 3), st.sampled_from(["", "So <tool ", "{}"]))
def test_however_they_come_the_calls_are_the_same(cuts: list[int], count: int, begin: str) -> None:
    calls = [("f", {"a": f"}}\n</tool_call>{number}"}) for number in range(count)]
    whole = begin + "\n".join(spelled(*call) for call in calls)
    text = Text((), Tools(()))
    places = sorted(min(cut, len(whole)) for cut in cuts)
    pieces = [text.add(whole[a:b].encode()) for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    pieces.append(text.rest())
    assert "".join(piece.text for piece in pieces) == begin
    found = [call for piece in pieces for call in piece.calls]
    assert [call.index for call in found] == list(range(count))
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@pytest.mark.parametrize(
    ("answer", "text", "count"),
    [
        ('```json\n{\n  "name": "f",\n  "arguments": {"a": true}\n}\n```', "", 1),  # Qwen2.5-Coder
        ('{"name": "f", "parameters": {"a": true}}', "", 1),  # Llama 3
        ('{"name": "f", "arguments": {"a"', "", 0),  # cut
        ('{"name": "f", "arguments": {"a": true, "b": {}}', "", 0),
        ('{"name": "f", "arguments": {"a": 1', None, 0),
        ('So: {"name": "f", "arguments": {"a": 1}} x', 'So: {"name": "f", "arguments": {"a": 1}} x', 0),
        ('{"name": "other", "arguments": {"a": 1}}', '{"name": "other", "arguments": {"a": 1}}', 0),
        ('{"name": "f"', '{"name": "f"', 0),
        ('{"name": "f", "argu ments": {"a": 1}}', '{"name": "f", "argu ments": {"a": 1}}', 0),
        (f'{{"name": "f", "arguments": {{"a": true}}{" " * 30}}}', None, 0),
    ],
)
def test_calls_without_tags(onnx_pool: Pool, answer: str, text: str | None, count: int) -> None:
    schema = {"properties": {"a": {"type": "boolean"}, "b": {"type": "object"}}, "required": ["a"]}
    tools, tokenizer = Tools(read_functions([tool("f", schema)])), onnx_pool.model.chat_tokenizer
    grammar, heard, pieces = tools.grammar(tokenizer), Text((), tools), []
    for token in tokenizer.encode(answer):
        if not grammar.allows(token):
            assert text is None
            return
        grammar.accept(token)
        pieces.append(heard.add(tokenizer.detokenizer()(token)))
    pieces.append(heard.rest())
    assert "".join(piece.text for piece in pieces) == text
    calls = [(call.name, call.arguments) for piece in pieces for call in piece.calls]
    assert calls == [("f", '{"a": true}')] * count


CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
CUT = {"name": "f", "arguments": "[1"}
ROUND = [
    *MESSAGES,
    {"role": "assistant", "content": None, "tool_calls": [CALLED, CALLED | {"id": "c2"}]},
    {"role": "tool", "tool_call_id": "c2", "content": "two"},
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
]


def test_what_a_model_without_tools_in_its_template_reads() -> None:
    functions = read_functions([tool("f", description="Does it.")])
    brief = {"role": "system", "content": "Be brief."}
    messages, tools = template_input([brief, *ROUND], functions, own=False)
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be brief.\n\nYou can call")
    assert json.dumps(functions[0]) in messages[0]["content"]
    call = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
    assert messages[2]["content"] == f"{call}\n{call}"
    results = (f"<tool_response>\n{n}\n</tool_response>" for n in ("two", "one"))
    assert messages[3]["content"] == "\n".join(results)
    assert template_input(MESSAGES, functions, own=False).messages[0]["role"] == "system"
    assert template_input(MESSAGES, (), own=False) == (MESSAGES, None)


def test_a_template_that_knows_tools_writes_them_itself(onnx_pool, tiny_bundle, load):
    template, named = onnx_bundles.TOOLS_TEMPLATE, "chat_template.default"
    sample = Sample(tuple(ROUND), tools=read_functions([tool("f"), tool("g")]))
    expected = "f g <tool_call>[user] x;[assistant] <tool_call>é<tool_call>é;[tool] two;[tool] one;"
    with load(tiny_bundle) as llm:
        llm.metadata["tokenizer.chat_template"] = template
        llm.chat_format = named
        formatter = Jinja2ChatFormatter(template, eos_token="", bos_token="")
        llm._chat_handlers[named] = formatter.to_chat_handler()
        assert llm.encode(sample)[0] == llm.tokenize(expected.encode(), special=True)
    assert onnx_pool.model.encode(sample)[0] == onnx_pool.model.chat_tokenizer.encode(expected)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (ROUND[:1] + ROUND[2:], "'c2', and the assistant's message before it has no such call"),
        ([*ROUND, ROUND[-1]], "'c1', and the assistant's message"),
        ([{"role": "tool", "content": "x"}], "None, and the assistant's message"),
        ([*ROUND, *MESSAGES, ROUND[-1]], "'c1', and the assistant's message"),
        ([{"role": "user", "content": "x", "tool_calls": [CALLED]}], "no list of an assistant"),
        ([{"role": "assistant", "tool_calls": [{"id": "c1"}]}], r"tool_calls\[0\] is not a call"),
        (
            [{"role": "assistant", "tool_calls": [CALLED | {"function": CUT}]}],
            r"tool_calls\[0\] is not a call",
        ),
    ],
)
def test_messages_about_calls_that_are_none(onnx_pool: Pool, messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        asyncio.run(onnx_pool.chat(messages))


def test_a_schema_that_is_itself_is_named(onnx_pool: Pool) -> None:
    broken = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    tools = Tools.read([tool("fine", SCHEMAS["nested"]), tool("broken", broken)], "auto", True)
    assert tools is not None
    message = r"^the parameters of 'broken': the \$ref '#' in the JSON schema"
    with pytest.raises(RequestError, match=message) as caught:
        tools.grammar(onnx_pool.model.chat_tokenizer)
    assert caught.value.param == "tools[1].function.parameters"
