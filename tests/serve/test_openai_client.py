"""The real client of OpenAI against the real server on the real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import support
from serving import Serving, framed, mac_file, serving

from tinylora_edge import Bases, Basis, Hmac, MicroVector, load_bundle, runtime
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.wire.text import encode as as_text

QUESTION = [{"role": "user", "content": "Name three fruits."}]
LIMIT = 8


@pytest.fixture(scope="module")
def server(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    store = ("--name", "smollm2", "--store", folder / "users.db", "--key", mac_file(folder))
    with serving(folder, smollm2_bundle, *store, "--n-ctx", "512") as running:
        yield running


@pytest.fixture(scope="module")
def bases(smollm2_bundle: Path) -> Bases:
    return load_bundle(smollm2_bundle).bases


@pytest.fixture(scope="module")
def alone(smollm2_bundle: Path) -> Iterator[TinyLoraLlama]:
    with runtime.load(smollm2_bundle, engine="llama", n_ctx=512, n_threads=1, n_threads_batch=1) as llm:
        yield llm


def content_of(llm: TinyLoraLlama, vector: MicroVector | None) -> str:
    llm.clear() if vector is None else llm.swap(vector)
    answer = llm.create_chat_completion(QUESTION, max_tokens=LIMIT, temperature=0)
    return answer["choices"][0]["message"]["content"]


def ask(client: openai.OpenAI, model: str = "smollm2", **options: Any) -> Any:
    body = {"messages": QUESTION, "max_tokens": LIMIT, "temperature": 0} | options
    return client.chat.completions.create(model=model, **body)


def test_the_base_answers_where_there_is_no_vector(client: openai.OpenAI, alone: TinyLoraLlama) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"
    answer = ask(client)
    assert answer.choices[0].message.content == content_of(alone, None)
    assert answer.usage.completion_tokens == LIMIT
    assert answer.usage.total_tokens == LIMIT + answer.usage.prompt_tokens
    for user in ("", "ann"):
        cached = [ask(client, user=user).usage.prompt_tokens_details.cached_tokens for _ in range(2)]
        assert cached == [0, answer.usage.prompt_tokens if user else 0]


def test_every_user_gets_their_own_answer_three_ways(server, client, alone, bases):
    """With 13, 50, 210, 840 and 13,440 numbers beside each other: nearer to that of the same user alone than
    to all others. Rows beside each other round otherwise than one alone, so texts may part."""
    sizes = support.each_size(bases)
    assert [basis.size for basis in sizes] == [13, 50, 210, 840, 13_440]
    for seed, basis in enumerate(sizes):
        frame = as_text(framed(basis, f"user{seed}", seed))
        status, stored = server.ask("PUT", f"/v1/vectors/user{seed}", {"vector": frame})
        assert (status, stored["sequence"], "vector" in stored) == (200, 1, False)
    how = {"logprobs": True, "top_logprobs": 20}

    def likeliest(choice: Any) -> dict[str, float]:
        return {each.token: each.logprob for each in choice.logprobs.content[0].top_logprobs}

    def by_name(seed: int) -> dict[str, float]:
        return likeliest(ask(client, f"smollm2@user{seed}", **how).choices[0])

    def by_body(seed: int) -> dict[str, float]:
        body = {"vector": as_text(framed(sizes[seed], f"body{seed}", seed))}
        return likeliest(ask(client, user=f"body{seed}", extra_body=body, **how).choices[0])

    def by_header(seed: int) -> dict[str, float]:
        headers = {"X-TinyLora-Vector": as_text(framed(sizes[seed], f"header{seed}", seed))}
        pieces = ask(client, user=f"header{seed}", stream=True, extra_headers=headers, **how)
        chosen = [piece.choices[0] for piece in pieces if piece.choices]
        return likeliest(next(choice for choice in chosen if choice.logprobs))

    async def one_after_the_other() -> list[dict[str, float]]:
        with runtime.Pool(alone, slots=1, n_ctx=512) as pool:
            vectors = [support.of_norm(basis, 3.0, seed) for seed, basis in enumerate(sizes)]
            options: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": 20}
            answers = [await pool.chat(QUESTION, vector=vector, **options) for vector in vectors]
        return [
            {data.decode(errors="replace"): each for data, each in answer.tokens[0].likeliest}
            for answer in answers
        ]

    def apart(found: dict[str, float], other: dict[str, float]) -> float:
        return sum(abs(each - other.get(token, -12.0)) for token, each in found.items())

    expected = asyncio.run(one_after_the_other())
    with ThreadPoolExecutor(15) as threads:
        ways = [list(threads.map(way, range(5))) for way in (by_name, by_body, by_header)]
    for way in ways:
        assert [min(range(5), key=lambda i, f=found: apart(f, expected[i])) for found in way] == [*range(5)]


def test_a_stream_ends_with_what_it_cost(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    whole = ask(client)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == LIMIT
    assert len({chunk.id for chunk in chunks}) == 1


def test_what_is_refused_is_refused_with_the_reason(server, client, basis):
    other = support.random_basis(blocks=8, groups=basis.size)
    newer, older = framed(basis, "dora", sequence=8), framed(basis, "dora", sequence=7)
    assert ask(client, user="dora", extra_body={"vector": as_text(newer)})
    refused = {
        "vector_forged": framed(basis, "dora", key=Hmac(bytes(32))),
        "vector_stale": older,
        "vector_of_another_basis": framed(other, "dora"),
        "vector_refused": framed(basis, "dora", norm=300, sequence=9),
    }
    for code, frame in refused.items():
        with pytest.raises(openai.PermissionDeniedError) as caught:
            ask(client, user="dora", extra_body={"vector": as_text(frame)})
        assert caught.value.code == code, caught.value
        status, body = server.ask("PUT", "/v1/vectors/dora", frame, Content_Type="application/octet-stream")
        assert (status, body["error"]["code"]) == (403, code)
        if code == "vector_of_another_basis":
            assert f"for basis {other.id}" in body["error"]["message"]
            assert "this model takes all entries of rank 1 to 8" in body["error"]["message"]
    kind = {"Content_Type": "application/octet-stream"}
    for frame, status, code in (
        (framed(basis, "eve"), 403, "vector_forged"),
        (newer[:-1], 422, "vector_damaged"),
    ):
        found, body = server.ask("PUT", "/v1/vectors/dora", frame, **kind)
        assert (found, body["error"]["code"]) == (status, code)
    assert server.ask("GET", "/v1/vectors/dora")[0] == 404
    both = {"extra_body": {"vector": as_text(newer)}, "extra_headers": {"X-TinyLora-Vector": as_text(older)}}
    for model, error, message, options in (
        ("smollm2@nobody", openai.NotFoundError, "user 'nobody' has no vector here", {}),
        ("gpt-4", openai.NotFoundError, "there is no model 'gpt-4'", {}),
        ("smollm2@../../etc", openai.BadRequestError, "not a valid user", {}),
        ("smollm2", openai.BadRequestError, "different vectors", both),
    ):
        with pytest.raises(error, match=message):
            ask(client, model, **options)
    _, counted = server.ask("GET", "/metrics")
    assert b'tinylora_refused_vectors_total{reason="vector_forged"}' in counted


def test_a_users_vector_is_put_got_and_deleted(server: Serving, basis: Basis) -> None:
    first, second = framed(basis, "eve", 1, sequence=3), framed(basis, "eve", 2, sequence=4)
    kind = {"Content_Type": "application/octet-stream"}
    assert server.ask("PUT", "/v1/vectors/eve", first, **kind)[0] == 200
    assert server.ask("PUT", "/v1/vectors/eve", second, **kind)[1]["sequence"] == 4
    status, body = server.ask("PUT", "/v1/vectors/eve", first, **kind)
    assert (status, body["error"]["code"]) == (403, "vector_stale")
    assert server.ask("GET", "/v1/vectors/eve")[1]["vector"] == as_text(second)
    assert server.ask("GET", "/v1/vectors/eve", Accept="application/octet-stream") == (200, second)
    assert server.ask("DELETE", "/v1/vectors/eve")[1]["deleted"]
    assert server.ask("DELETE", "/v1/vectors/eve")[0] == 404
    assert server.ask("GET", "/v1/vectors/eve")[0] == 404
    assert server.ask("PUT", "/v1/vectors/eve", first, **kind)[0] == 403


def test_sampling_as_openai_has_it(client: openai.OpenAI) -> None:
    # The second time the prompt is in the cache, and where llama.cpp computes one row by another kernel than
    # many, the last bits of the logits are others. This seed draws nothing so near to a bound.
    drawn = {"temperature": 1, "top_p": 0.9, "seed": 8, "n": 2, "max_completion_tokens": 6}
    options = drawn | {"max_tokens": openai.NOT_GIVEN}
    first, again = ([c.message.content for c in ask(client, **options).choices] for _ in range(2))
    assert first == again
    assert len(set(first)) == 2
    streamed: dict[int, str] = {0: "", 1: ""}
    for chunk in ask(client, **options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == first
    whole = ask(client).choices[0].message.content
    stopped = ask(client, stop=[whole[4:8]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.find(whole[4:8])], "stop")
    (choice,) = ask(client, logprobs=True, top_logprobs=2, max_tokens=3).choices
    assert len(choice.logprobs.content) == 3
    for token in choice.logprobs.content:
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)


def test_an_answer_keeps_to_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"fruit": {"enum": ["apple", "pear"]}, "count": {"enum": [1, 2, 3]}},
        "required": ["fruit", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": schema}}
    answer = json.loads(ask(client, response_format=form, max_tokens=40).choices[0].message.content)
    assert answer["fruit"] in ("apple", "pear")
    assert answer["count"] in (1, 2, 3)


def test_completions_go_past_the_chat_template(client: openai.OpenAI, alone: TinyLoraLlama) -> None:
    alone.clear()
    prompt = "The three primary colours are red, yellow and"
    expected = alone.create_completion(prompt, max_tokens=5, temperature=0)["choices"][0]["text"]
    complete = partial(client.completions.create, model="smollm2", prompt=prompt, max_tokens=5, temperature=0)
    answer = complete(logprobs=1)
    assert answer.choices[0].text == expected
    assert len(answer.choices[0].logprobs.tokens) == 5
    assert "".join(piece.choices[0].text for piece in complete(stream=True)) == expected


def test_a_client_that_leaves_frees_its_slot(server: Serving, client: openai.OpenAI) -> None:
    long = {"max_tokens": 400, "messages": [{"role": "user", "content": "Tell me a very long story."}]}
    for chunk in (stream := ask(client, **long, stream=True)):
        if chunk.choices[0].delta.content:
            break
    stream.close()
    connection = server.connect()
    body = json.dumps({"model": "smollm2", "temperature": 0} | long)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    support.wait_until(lambda: server.busy()[0] > 0)
    connection.close()
    support.wait_until(lambda: server.busy()[0] == 0)
    finished = [line["completion_tokens"] for line in server.lines() if "completion_tokens" in line]
    assert 400 not in finished


def test_the_log_has_neither_prompts_nor_answers(server: Serving, client: openai.OpenAI) -> None:
    answer = ask(client, messages=[{"role": "user", "content": "xyzzy"}]).choices[0].message.content
    server.wait_for_line("/v1/chat/completions")
    log = server.log.read_text("utf-8")
    assert "xyzzy" not in log
    assert answer not in log
    assert server.lines()[-1]["route"] == "/v1/chat/completions"
    assert not [line for line in server.lines() if line["level"] != "info"]
