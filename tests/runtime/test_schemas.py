"""Answers that keep to JSON schemas, in both engines, beside answers that keep to none."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import converter
import gguf
import jsonschema
import models
import numpy as np
import onnx_bundles
import pytest
import shared

from tinylora_edge import MicroVector, RequestError, TinyLoraError
from tinylora_edge.runtime import Pool, compiling
from tinylora_edge.runtime import schema as schema_module
from tinylora_edge.runtime.answers import Answer
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.engine import GrammarTokens
from tinylora_edge.tasks import Sample

NAMED = {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}
GOOD: dict[str, dict[str, Any]] = {
    "one of": {"enum": ["yes", "no", 3, None]},
    "an object": {
        "type": "object",
        "properties": {"name": NAMED, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "numbers": {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 12}, "maxItems": 6},
    "a list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    "a choice": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 6}]},
    "parts by name": {
        "$defs": {"point": {"type": "array", "items": {"enum": [0, 1, 2]}, "minItems": 2, "maxItems": 2}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "both of two": {"type": "string", "allOf": [{"pattern": "^[ab]+$"}, {"maxLength": 5}], "pattern": "^a"},
    "a part and more": {
        "$defs": {"part": {"properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
        "$ref": "#/$defs/part",
        "type": "object",
        "properties": {"b": {"type": "null"}},
        "required": ["b"],
        "maxProperties": 2,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x[ab]$": {"type": "null"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": -700, "maximum": 700},
}


def twice(count: int) -> dict[str, Any]:
    """Each schema has the next one twice: 2^count of them, written out."""
    ref = [{"$ref": f"#/$defs/{n + 1}"} for n in range(count)]
    defs = {f"{n}": {"type": "array", "prefixItems": [ref[n]] * 2} for n in range(count)}
    return {"$ref": "#/$defs/0", "$defs": defs | {f"{count}": {"type": "null"}}}


SLOW = r"((.{0,65536}é\w)+){0,3}\\"
BAD = [
    {"$ref": "https://example.org/schema.json"},
    {"type": "string", "pattern": "^(?=a)a$"},
    {"type": "number", "multipleOf": False},
    {"type": "integer", "minimum": "x", "maximum": 1},
    {"not": {"type": "string"}},
    {"enum": [math.nan]},
    {"maxLength": math.nan},
    {"maxLength": -math.inf},
    {"type": "no such type"},
    {"enum": ["x" * (1 << 16)]},
    {"properties": {f"p{i}": {} for i in range(401)}},
    {"enum": [object()]},
    {"type": "array", "items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}},
    {"type": "array", "items": {"$ref": "#"}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}},
    {"$ref": "#/description", "description": {"allOf": [{}, {}]}},
    twice(9),
]
BOMB = {"anyOf": [{"type": "integer", "multipleOf": number} for number in (9000, 9001, 9002)]}
TOO_MUCH = [  # each of these keeps llguidance busy for minutes and takes gigabytes, or ends its process
    BOMB,
    {"properties": {f"p{number}": {"type": "integer", "multipleOf": 9000 + number} for number in range(100)}},
    {"type": "string", "allOf": [{"pattern": f".*{letter}.*"} for letter in ascii_lowercase[:24]]},
    {"const": -(1 << 63)},
    {"allOf": [{"pattern": SLOW}, {"pattern": "^.*x.*y.*$"}]},
    {
        "$defs": {"a": {"properties": {"p": {"pattern": SLOW}}}},
        "$ref": "#/$defs/a",
        "properties": {"p": {"pattern": "^.*x.*y.*$"}},
    },
]

LONG = [  # some kept an engine busy for minutes, others were refused without need
    {"type": "string", "pattern": "^(a?){1000}b$"},
    {"type": "string", "pattern": "^((((a?){9}){9}){9}){9}b$"},
    {"type": "string", "pattern": "^(a{1,999}){1,999}$"},
    {"type": "string", "maxLength": 10**9},
    {"type": "string", "format": "email", "maxLength": 320},
    {"properties": {"a": {"anyOf": [{"type": "string", "maxLength": 10_000}, {"type": "null"}]}, "b": NAMED}},
    {"type": "number", "multipleOf": 0.01},
    {"type": "integer", "multipleOf": 9_973},
    {"type": "object", "properties": {f"p{i}": {} for i in range(400)}},
    {"anyOf": [{"type": "array", "minItems": number} for number in range(400)]},
    {"enum": [[number] for number in range(400)]},
    {"required": [str(number) for number in range(401)]},
    twice(6),
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "boolean"}}, "title": "as pydantic has it"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"required": ["pattern"]}}, "description": "alone"},
    {"properties": {"pattern": {}, "enum": {}, "$ref": {"type": "null"}}, "required": ["enum"]},
]


@pytest.fixture(scope="module")
def onnx_pool() -> Iterator[Pool]:
    with Pool(onnx_bundles.tiny(), slots=6, n_ctx=400, n_threads=1) as opened:
        yield opened


@pytest.fixture
def llama_pool(tiny_bundle: Path) -> Iterator[Pool]:
    with Pool(tiny_bundle, slots=3, n_ctx=400, n_threads=1) as opened:
        yield opened


def vectors(pool: Pool, count: int) -> list[MicroVector]:
    return [MicroVector.random(pool.bases.basis(numbers=13), 1.0, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_keeps_to_its_schema(pool: Pool, temperature: float) -> None:
    users = vectors(pool, 2)

    async def answers() -> list[Answer]:
        calls = (
            pool.complete("x", schema=schema, vector=users[n % 2], seed=n, temperature=temperature)
            for n, schema in enumerate(GOOD.values())
        )
        return await asyncio.gather(*calls)

    for schema, answer in zip(GOOD.values(), asyncio.run(answers()), strict=True):
        jsonschema.validate(json.loads(answer.text), schema)
        assert answer.finish.reason == "stop"


def allowed(pool: Pool, schema: dict[str, Any], text: str) -> bool:
    """Whether a text is an answer that keeps to a schema: each of its bytes, and its end."""
    tokenizer = pool.model.chat_tokenizer
    grammar = schema_module.grammar_of(schema, tokenizer)
    for token in tokenizer.encode_plain(text):
        if not grammar.allows(token):
            return False
        grammar.accept(token)
    return bool(grammar._matcher.is_accepting())


def test_json_is_compact(llama_pool: Pool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "array"}}}
    for text in ('{"a": null, "b": [1, {}]}', '{"a":null,"b":[1,{}]}'):
        assert allowed(llama_pool, schema, text)
    for text in (
        '{"a": null\n\n, "b": []}',
        '{ "a": null}',
        '{"a":  null}',
        '{\n "a": null\n}',
        '{"a": null }',
    ):
        assert not allowed(llama_pool, schema, text), text


@pytest.mark.parametrize(
    "bounds", [{}, {"minimum": -9, "maximum": 9}, {"minimum": -9}, {"maximum": 9}], ids=str
)
@pytest.mark.parametrize("kind", ["integer", "number", ["integer", "null"], ["null", "number"]], ids=str)
def test_no_number_is_minus_zero(llama_pool: Pool, kind: Any, bounds: dict[str, int]) -> None:
    schema = {"type": kind, **bounds}
    whole = "number" not in kind
    for text in ("0", "-1", "7", *([] if whole else ["-0.5", "0.25"]), *(["null"] if "null" in kind else [])):
        assert allowed(llama_pool, schema, text), text
    for text in ("-0", *(["-0.5"] if whole else ["-0.0"]), *([] if "null" in kind else ["null"])):
        assert not allowed(llama_pool, schema, text), text


@pytest.mark.parametrize("schema", BAD, ids=lambda schema: json.dumps(schema, default=str)[:30])
def test_a_schema_that_becomes_no_grammar(onnx_pool: Pool, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="schema") as caught:
        asyncio.run(onnx_pool.complete("x", schema=schema, max_tokens=2))
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_value")
    assert onnx_pool.busy().running == 0


@pytest.mark.parametrize("schema", LONG, ids=lambda schema: json.dumps(schema)[:50])
def test_a_schema_of_many_ways_takes_no_time(onnx_pool: Pool, schema: dict[str, Any]) -> None:
    began = time.process_time()
    answer = asyncio.run(onnx_pool.complete("x", schema=schema, max_tokens=8, temperature=1, seed=0))
    assert answer.finish.completion_tokens
    assert time.process_time() - began < 5, "and it takes some milliseconds"


@pytest.mark.parametrize("schema", TOO_MUCH, ids=lambda schema: json.dumps(schema)[:30])
def test_a_grammar_that_takes_too_much_is_refused(onnx_pool: Pool, schema: dict[str, Any]) -> None:
    asking = onnx_pool.complete("x", schema=schema, max_tokens=2)
    with pytest.raises(RequestError, match="takes more than") as caught:
        asyncio.run(asyncio.wait_for(asking, 60))
    assert caught.value.param == "response_format"
    held = asyncio.run(onnx_pool.complete("x", schema={"const": 1}, max_tokens=9))
    assert held.text == "1", "the next one is made as ever"


def test_who_has_no_schema_waits_for_no_grammar(onnx_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while grammars of two accounts are made, and a third waits."""
    made = threading.Event()
    monkeypatch.setattr(schema_module, "why_not", lambda *_: made.wait(60) and None)

    async def ask() -> None:
        bombs = [asyncio.create_task(onnx_pool.complete("x", user=f"{n}", schema=BOMB)) for n in range(3)]
        try:
            await asyncio.sleep(0)
            for user in "0abc":
                answer = await asyncio.wait_for(onnx_pool.complete("x", user=user, max_tokens=2), 60)
                assert answer.finish.completion_tokens
            assert not any(task.done() for task in bombs)
        finally:
            made.set()
        assert all(
            isinstance(each, RequestError) for each in await asyncio.gather(*bombs, return_exceptions=True)
        )

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_no_grammar_is_made_for_who_has_left(onnx_pool: Pool, how: str) -> None:
    """Its process is ended, and those that wait are never begun."""

    async def ask() -> None:
        before = set(compiling._started)
        streams = [onnx_pool.stream("x", schema=BOMB, user="left") for _ in range(4)]
        tasks = [asyncio.create_task(stream.start()) for stream in streams]
        while not (busy := compiling._started - {*compiling._idle}):
            await asyncio.sleep(0.01)
        for stream, task in zip(streams, tasks, strict=True):
            stream.close() if how == "closed" else task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while any(process.poll() is None for process in busy):
            await asyncio.sleep(0.01)
        assert len(onnx_pool._compiling._queue) == 0
        assert not compiling._started - before - busy, "one was begun"

    asyncio.run(asyncio.wait_for(ask(), 60))


FORK = """
import os, sys
from tinylora_edge.runtime import compiling

assert compiling.why_not("x", {}, lambda: False), "it is no grammar"
(process,) = compiling._started
if not (child := os.fork()):
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert process.poll() is None, "the child's end was the process's"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="grammars are made by a process where there is os.fork")
def test_a_fork_that_ends_leaves_its_parent_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_answers_to_one_prompt_have_one_grammar(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = schema_module.why_not, list[str]()
    monkeypatch.setattr(schema_module, "why_not", lambda text, *how: made.append(text) or real(text, *how))
    encoded = list[Any]()
    encode = pool._encode
    monkeypatch.setattr(pool, "_encode", lambda *args, **how: encoded.append(args) or encode(*args, **how))
    items = {"type": "integer", "minimum": 0, "maximum": 99_999}  # an end, whatever random weights write
    schema = {"type": "array", "items": items, "minItems": 3, "maxItems": 3}

    async def ask(n: int) -> list[str]:
        streams = await pool.streams("x", n, raw=True, schema=schema, temperature=1, seed=4, max_tokens=300)
        return [(await stream.answer()).text for stream in streams]

    texts = asyncio.run(ask(3))
    assert (len(made), len(encoded)) == (1, 1)
    assert len({*texts}) == 3, "each draws its own numbers"
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    assert asyncio.run(ask(1)) == texts[:1]


def test_a_long_text_is_not_tokenized_at_each_token(onnx_pool, monkeypatch):
    asked = list[int]()
    monkeypatch.setattr(GrammarTokens, "__call__", lambda self, text: asked.append(len(text)) or [*text])
    tokenizer = onnx_pool.model.chat_tokenizer
    monkeypatch.delitem(vars(tokenizer), "for_grammars", raising=False)
    text = "abcdefgh" * 7000
    answer = asyncio.run(onnx_pool.complete("x", schema={"const": text}, max_tokens=9))
    assert f'"{text}"'.startswith(answer.text)
    assert max(asked) < 100


def test_whoever_has_no_schema_gets_the_same_bits_beside_those_who_have_one(onnx_pool: Pool) -> None:
    users, kinds = vectors(onnx_pool, 5), [None, *GOOD.values()]

    async def ask(n: int, prefix: str) -> tuple[str, list[float]]:
        how: Any = {"seed": n, "temperature": n % 2, "max_tokens": 20, "logprobs": 0}
        schema = kinds[n % len(kinds)]
        whose: Any = {"user": f"{prefix}{n}", "vector": users[n % 5], "schema": schema}
        answer = await onnx_pool.complete("a prompt", **whose, **how)
        return answer.text, [token.logprob for token in answer.tokens]

    async def together() -> list[tuple[str, list[float]]]:
        return await asyncio.gather(*(ask(n, "b") for n in range(2 * len(kinds))))

    alone = [asyncio.run(ask(n, "a")) for n in range(2 * len(kinds))]
    assert asyncio.run(together()) == alone
    assert alone[0] != alone[len(kinds)], "they are not held to anything"


def test_any_object_begins_and_ends_as_one(pool: Pool) -> None:
    for seed in range(4):
        answer = asyncio.run(pool.complete("x", schema={}, temperature=1, seed=seed, max_tokens=350))
        assert answer.text.startswith("{")
        if answer.finish.reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


def test_a_missing_library_is_named_with_the_command(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)  # as if it were not installed
    with pytest.raises(RequestError, match=r'pip install "tinylora-edge\[schema\]"') as caught:
        asyncio.run(pool.complete("x", schema={"enum": [1]}))
    assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_parameter")
    assert asyncio.run(pool.complete("x", max_tokens=2)).finish.completion_tokens <= 2


def test_a_tokenizer_that_cannot_be_read_fails_schemas_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    with Pool(onnx_bundles.tiny(), slots=2, n_ctx=64, n_threads=1) as pool:

        def read(path: Path, *how: Any, **more: Any) -> str:
            return "{}" if path.name == "tokenizer.json" else real(path, *how, **more)

        monkeypatch.setattr(Path, "read_text", read)
        with pytest.raises(TinyLoraError, match=r"does not read .*tokenizer\.json"):
            asyncio.run(pool.complete("x", schema={"enum": [1]}))
        assert asyncio.run(pool.complete("x", max_tokens=2)).finish.completion_tokens <= 2


LABELS = ["cancel", "cancel order", '"quoted"\n']


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_sequence_of_a_batch_keeps_to_the_schema(llm: Any, temperature: float) -> None:
    prompts = [llm.encode(Sample(text, raw=True))[0] for text in ("a prompt", "another", "x")]
    users = [None, *vectors(llm, 2)]
    how: Any = {"vectors": users, "samples": 2, "temperature": temperature, "seed": 3}
    with Batch(llm, n_ctx_seq=200, sequences=4, n_threads=2) as batch:
        free = batch.generate(prompts, max_tokens=20, **how)
        for schema in (GOOD["one of"], GOOD["a list"]):
            for each in batch.generate(prompts, max_tokens=160, schema=schema, **how):
                assert each.ended
                jsonschema.validate(json.loads(llm.chat_tokenizer.decode(each.tokens[:-1].tolist())), schema)
        held = batch.generate(prompts, max_tokens=20, schema=LABELS, **how)
        again = batch.generate(prompts, max_tokens=20, **how)
        # Of the tokens that may stand there the masked distribution has all.
        data = {token: llm.chat_tokenizer.data(token).decode() for token in range(llm.n_vocab())}
        may = [t for t, text in data.items() if text and any(each.startswith(text) for each in LABELS)]
        among = batch.score_each(users, prompts, [[[token] for token in may]] * 3)
    assert [llm.chat_tokenizer.decode(each.tokens[:-1].tolist()) in LABELS for each in held] == [True] * 6
    assert all(each.ended for each in held)
    assert [each.tokens.tolist() for each in again] == [each.tokens.tolist() for each in free]
    for number, each in enumerate(held[::2]):
        scores = np.concatenate(among[number][number]) / (temperature or 1.0)
        row = dict(zip(may, scores, strict=True))
        expected = row[each.tokens[0]] - np.log(sum(np.exp(row[token]) for token in may))
        assert each.logprobs[0] == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def sentencepiece(tmp_path, load, monkeypatch):
    """Return a function that makes a model of bytes, where one of them may be missing."""

    def opened(without: int | None = None) -> Any:
        def vocabulary(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model("llama")
            tokens = [f"<0x{byte:02X}>" for byte in range(256)]
            writer.add_token_list([*tokens, "<bos>", "<eos>", "<pad>", "<unk>"])
            writer.add_token_scores([0.0] * 260)
            kinds = [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.CONTROL] * 4
            if without is not None:
                kinds[without] = gguf.TokenType.CONTROL
            writer.add_token_types(kinds)
            writer.add_bos_token_id(256)
            writer.add_eos_token_id(257)

        monkeypatch.setattr(converter, "_add_vocabulary", vocabulary)
        source = models.write_gguf(models.tiny_model("llama"), tmp_path / "model.gguf")
        return load(shared.export(source, tmp_path / "bundle"))

    return opened


def test_the_space_that_sentencepiece_puts_in_front_is_no_part_of_an_answer(sentencepiece):
    with sentencepiece() as llm:
        assert llm.chat_tokenizer.encode_plain("{")[0] != ord("{")
        with Pool(llm, slots=1, n_ctx=256, n_threads=1) as pool:
            answer = asyncio.run(pool.complete("x", schema={"const": "so"}, max_tokens=20))
    assert answer.text == '"so"'


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_no_token_goes_on_an_answer_fails(sentencepiece, temperature):
    schema: Any = {"const": "so"}
    with sentencepiece(without=ord("o")) as llm:
        with (
            Batch(llm, n_ctx_seq=64, sequences=1, n_threads=1) as batch,
            pytest.raises(RequestError, match="no token that the schema allows"),
        ):
            batch.generate([[1]], max_tokens=20, schema=schema, temperature=temperature)
        with Pool(llm, slots=1, n_ctx=256, n_threads=1) as pool:
            with pytest.raises(RequestError, match="no token that the schema allows"):
                asyncio.run(pool.complete("x", schema=schema, temperature=temperature, max_tokens=20))
            assert asyncio.run(pool.complete("x", schema={"const": "s"}, max_tokens=20)).text == '"s"'
