"""Many users of one model at once, on both engines: each gets the answer that they would get alone."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import onnx_bundles
import pytest
import support
from turns import PATIENCE, bits, blocked, start

from tinylora_edge import FrameError, Hmac, MicroVector, Policy, RollbackError, SignatureError, runtime
from tinylora_edge.errors import OptionError, OverloadError, RequestError, TinyLoraError, VectorError
from tinylora_edge.runtime import Pool, TinyLoraLlama
from tinylora_edge.runtime import pool as pool_module
from tinylora_edge.runtime.answers import Answer
from tinylora_edge.runtime.pool import AnswerStream

LIMIT = 20
PROMPTS = ["one two three", "one two four", "quite another text, and a longer one", "x" * 129, "y" * 256]


@pytest.fixture(params=["llama", "onnx"])
def opened(request: pytest.FixtureRequest, tiny_bundle: Path) -> Callable[..., Pool]:
    usual: dict[str, Any] = {"n_ctx": 400, "n_threads": 2, "slots": 3}
    usual |= dict.fromkeys(("type_k", "type_v"), llama_cpp.GGML_TYPE_F32)
    if request.param == "llama":
        return lambda **options: Pool(tiny_bundle, **usual | options)
    usual = {"n_ctx": 400, "n_threads": 1, "slots": 5}
    return lambda **options: Pool(onnx_bundles.tiny(), **usual | options)


@pytest.fixture
def pool(opened: Callable[..., Pool]) -> Iterator[Pool]:
    with opened() as made:
        yield made


def vectors(pool: Pool, count: int, norm: float = 1.0) -> list[MicroVector]:
    of = cycle(support.each_size(pool.bases))  # users beside each other have different sizes
    return [MicroVector.random(next(of), norm, seed=seed) for seed in range(count)]


def alone(pool: Pool, prompt: str, vector: MicroVector | None, limit: int = LIMIT) -> str:
    llm: Any = pool.model
    llm.swap(vector or MicroVector.zeros(pool.bases.basis(numbers=13)))
    return llm.create_completion(prompt, max_tokens=limit, temperature=0.0)["choices"][0]["text"]


async def idle(pool: Pool) -> None:
    while (busy := pool.busy()).running or busy.waiting:
        await asyncio.sleep(0.002)


def test_users_with_long_prompts_in_many_slots_are_answered(opened: Callable[..., Pool]) -> None:
    """With 32 slots two users waited for ever: a step took larger pieces than an account could save."""
    with opened(slots=32) as pool:

        async def both() -> list[Answer]:
            calls = [pool.complete("x" * 65, user=user, max_tokens=2) for user in ("ann", "bob")]
            return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)

        assert all(each.finish.prompt_tokens >= 65 for each in asyncio.run(both()))


def test_every_user_gets_the_answer_that_they_would_get_alone(pool: Pool) -> None:
    chance, users = random.Random(0), [None, *vectors(pool, 7)]
    requests = [(u, p, 1 + chance.randrange(2 * LIMIT)) for u in range(8) for p in PROMPTS[:4]]
    chance.shuffle(requests)

    async def one(number: int, user: int, prompt: str, limit: int) -> str:
        await asyncio.sleep(0.003 * number)
        how: Any = {"user": str(user), "vector": users[user], "max_tokens": limit}
        if number % 3:
            return (await pool.complete(prompt, temperature=0, **how)).text
        drawn = asyncio.create_task(pool.complete(prompt, temperature=2, **how))  # beside them
        text = (await pool.complete(prompt, temperature=0, **how)).text
        drawn.cancel()
        return text

    async def all_of_them() -> list[str]:
        found = await asyncio.gather(*(one(n, *each) for n, each in enumerate(requests)))
        await idle(pool)
        return found

    found = asyncio.run(all_of_them())
    assert found == [alone(pool, prompt, users[user], limit) for user, prompt, limit in requests]
    assert len(set(found)) > 20, "the vectors differ"


@pytest.mark.slow
def test_an_answer_has_the_same_bits_whoever_is_answered_beside_it(opened: Callable[..., Pool]) -> None:
    """And with any number of slots."""

    async def answers(pool: Pool, beside: int, prompt: str, temperature: float) -> list[float]:
        mine, *others = vectors(pool, 7)
        tasks = []
        for number in range(beside):
            how: Any = {"vector": others[number % 6], "max_tokens": 5 * (number + 1), "temperature": 1}
            call = pool.complete(PROMPTS[number % 5], user=f"{beside} {number}", **how)
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0.001 * number)
        options: Any = {"vector": mine, "max_tokens": LIMIT, "temperature": temperature, "seed": 7}
        own = pool.complete(prompt, user=f"me {beside}", logprobs=0, top_p=0.9, **options)
        return bits((await asyncio.gather(own, *tasks))[0])

    with opened(slots=1) as one, opened(slots=7) as pool:
        if not pool.exact:
            pytest.skip("this processor's kernels compute a row in another way beside others")
        for prompt in PROMPTS:
            for temperature in (0.0, 1.0):
                first = asyncio.run(answers(one, 0, prompt, temperature))
                found = [asyncio.run(answers(pool, beside, prompt, temperature)) for beside in (0, 1, 3, 6)]
                assert found == [first] * 4


def test_a_users_next_request_finds_what_the_last_one_evaluated(pool: Pool) -> None:
    mine, other = vectors(pool, 2)
    first = "a prompt of some length that comes again with more behind it, and then once more as it was"
    options: Any = {"max_tokens": LIMIT, "temperature": 0, "logprobs": 0}

    async def answers() -> list[Answer]:
        begun = await pool.complete(first, user="me", vector=mine, **options)
        longer = first + begun.text + ", and more"
        who = [("me", mine), ("stranger", mine), ("me", other), ("me", mine)]
        await pool.complete(PROMPTS[1], user="somebody", vector=mine, **options)
        return [begun, *[await pool.complete(longer, user=u, vector=v, **options) for u, v in who]]

    begun, *answers = asyncio.run(answers())
    cached = [answer.finish.cached_tokens for answer in answers]
    assert begun.finish.cached_tokens == cached[1] == cached[2] == 0, "nobody finds what was others'"
    assert cached[0] == 64, "whole pieces; keys of what was generated have other bits than a prompt's"
    assert cached[3] == answers[3].finish.prompt_tokens, "the same prompt again is not evaluated at all"
    assert bits(answers[0]) == bits(answers[1]) == bits(answers[3]) != bits(answers[2])


def test_what_requests_of_a_tenant_begin_with_is_evaluated_once(pool: Pool) -> None:
    vector, begin = (
        vectors(pool, 1)[0],
        "what all of them begin with, and it has more than sixty-four letters",
    )
    how: Any = {"vector": vector, "max_tokens": LIMIT, "temperature": 0, "logprobs": 0}

    async def answers(*users: str) -> list[Answer]:
        calls = [pool.complete(f"{begin} {n}!", user=user, **how) for n, user in enumerate(users)]
        return await asyncio.gather(*calls)

    together, alone = asyncio.run(answers(*["me"] * 4)), asyncio.run(answers("a", "b", "c", "d"))
    cached = sorted(each.finish.cached_tokens for each in together)
    assert cached == [0, 64, 64, 64]
    assert [bits(each) for each in together] == [bits(each) for each in alone]


def test_a_pool_that_is_dropped_leaves_no_thread(opened: Callable[..., Pool]) -> None:
    gc.collect()
    before = set(threading.enumerate())
    opened()
    gc.collect()
    support.wait_until(lambda: set(threading.enumerate()) <= before, PATIENCE)


def test_whoever_leaves_frees_a_place(pool: Pool, held: Callable[..., Any]) -> None:
    how: Any = {"user": "stays", "vector": vectors(pool, 1)[0], "max_tokens": 60, "temperature": 0}

    async def leave() -> None:
        expected = bits(await pool.complete(PROMPTS[2], logprobs=0, **how))
        staying = asyncio.create_task(pool.complete(PROMPTS[2], logprobs=0, **how))
        with held("drops") as at:
            stream = pool.stream(PROMPTS[0], raw=True, user="drops", max_tokens=300)
            await stream.start()
            await at.reached()
            del stream
            gc.collect()
        with held("closes") as at:
            stream = pool.stream(PROMPTS[0], raw=True, user="closes", max_tokens=300)
            reader = asyncio.create_task(stream.answer())
            await at.reached()
            stream.close()
            await asyncio.wait_for(reader, PATIENCE)
        with held("cancels", after=2) as at:
            task = asyncio.create_task(pool.complete(PROMPTS[1], user="cancels", max_tokens=300, seed=3))
            await at.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        streams = [pool.stream("z" * 380, raw=True, user=str(i), max_tokens=9) for i in range(9)]
        for stream in streams:  # some of them wait
            await stream.start()
        for stream in streams:
            stream.close()
            assert [piece async for piece in stream] == []
        np.testing.assert_allclose(bits(await staying), expected, rtol=1e-3)

        prepare, calls = pool._preparing.submit, count()

        def leaving(*call: Any) -> Any:  # the request has begun, and its task is cancelled before it hears
            begun = prepare(*call)
            if next(calls) == 1:
                wait([begun])
                task.cancel()
            return begun

        with pytest.MonkeyPatch.context() as patch, held("leaves"):
            patch.setattr(pool._preparing, "submit", leaving)
            stream = pool.stream(PROMPTS[0], user="leaves", max_tokens=300)
            task = asyncio.create_task(stream.start())
            with pytest.raises(asyncio.CancelledError):
                await task
        assert stream._work.cancelled
        await idle(pool)

    asyncio.run(leave())


def test_who_leaves_while_a_request_begins_is_not_answered(pool: Pool, monkeypatch: Any) -> None:
    def leave(*request: Any) -> Any:
        stream.close()
        return real(*request)

    async def begin() -> None:
        await stream.start()
        assert pool.busy() == (0, 0)
        assert [piece async for piece in stream] == []

    real, stream = pool_module.answering, pool.stream(PROMPTS[0], max_tokens=300)
    monkeypatch.setattr(pool_module, "answering", leave)
    asyncio.run(begin())


def test_more_than_may_wait_are_refused(opened: Callable[..., Pool]) -> None:
    async def too_many(pool: Pool) -> list[Any]:
        calls = [pool.complete(PROMPTS[1], user=str(i), max_tokens=90, temperature=0) for i in range(9)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with opened(slots=1, n_ctx=256, waiting=2, n_threads=1) as pool:
        found = asyncio.run(too_many(pool))
        refused = [each for each in found if isinstance(each, OverloadError)]
        assert len(refused) >= 1
        assert len({each.text for each in found if not isinstance(each, BaseException)}) == 1
        asyncio.run(idle(pool))


@pytest.mark.parametrize("tenants", [1, 10_000])
def test_one_account_holds_nobody_up(
    opened: Callable[..., Pool], held: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tenants: int
) -> None:
    """Whoever comes next finds a slot, and has as many turns in it as the other account has in all its slots,
    however many users it names."""
    users = map(str, cycle(range(tenants)))
    heard: Counter[str] = Counter()

    async def read(stream: AnswerStream, user: str) -> int:
        """Count a user's tokens, and return how many m had from the first of them to the last."""
        begun = None
        async for piece in stream:
            begun = heard["m"] if begun is None else begun
            heard[user] += len(piece.tokens)
        return heard["m"] - (begun or 0)

    def stream(pool: Pool, user: str) -> AnswerStream:
        who = {"tenant": next(users) if user == "m" else user, "account": user, "user": user}
        return pool.stream("abc", raw=True, **who, max_tokens=300, logprobs=0)

    async def again_and_again(pool: Pool) -> None:
        while True:
            await read(stream(pool, "m"), "m")

    async def beside(pool: Pool) -> None:
        many = [asyncio.create_task(again_and_again(pool)) for _ in range(6)]
        while pool.busy().waiting < 3:
            await asyncio.sleep(0.001)
        ann = stream(pool, "ann")
        with held("ann") as at:
            await ann.start()
            await at.reached()
            assert pool.busy().running == 4
        others = await read(ann, "ann")
        assert others < 3.5 * heard["ann"]
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)

    with opened(slots=4, n_threads=1) as pool:
        monkeypatch.setattr(pool.model.chat_tokenizer, "ends", lambda token: False)  # each has 300 tokens
        asyncio.run(beside(pool))


def test_bytes_are_checked_at_every_request(opened: Callable[..., Pool]) -> None:
    key, forger = Hmac(bytes(range(32))), Hmac(bytes(32))

    async def ask(pool: Pool, data: bytes, user: str = "alice") -> str:
        return (await pool.complete("abc", user=user, vector=data, max_tokens=3, temperature=0)).text

    with opened(policy=Policy(keys=[key], max_norm=2)) as pool:
        basis = pool.bases.basis(rank=2)
        vector = MicroVector.random(basis, 1.0)
        numbered = [replace(vector, sequence=n).to_bytes(basis, tag=key, user="alice") for n in range(4)]
        assert asyncio.run(ask(pool, numbered[2])) == asyncio.run(ask(pool, numbered[3]))
        with pytest.raises(RollbackError, match="sequence 1, but 3 was already accepted from user 'alice'"):
            asyncio.run(ask(pool, numbered[1]))
        with pytest.raises(SignatureError, match="another user than 'bob'"):
            asyncio.run(ask(pool, numbered[3], user="bob"))
        with pytest.raises(SignatureError):
            asyncio.run(ask(pool, vector.to_bytes(basis, tag=forger, user="alice")))
        with pytest.raises(VectorError, match="norm"):
            asyncio.run(ask(pool, MicroVector.random(basis, 3.0).to_bytes(basis, tag=key, user="alice")))
        asyncio.run(idle(pool))


def test_stop_texts_log_probabilities_and_the_longest_answer(pool: Pool) -> None:
    whole = alone(pool, PROMPTS[1], None)
    stop = whole[3:5]
    answer = asyncio.run(pool.complete(PROMPTS[1], max_tokens=LIMIT, temperature=0, stop=stop))
    assert (answer.text, answer.finish.reason) == (whole.partition(stop)[0], "stop")
    short = asyncio.run(pool.complete(PROMPTS[1], max_tokens=2, temperature=0, logprobs=3))
    assert (short.finish.reason, short.finish.completion_tokens) == ("length", 2)
    assert short.finish.prompt_tokens == len(PROMPTS[1])
    assert len(short.tokens) == 2
    for token in short.tokens:
        assert token.likeliest[0] == (token.data, pytest.approx(token.logprob))
        assert len(token.likeliest) == 3
    full = asyncio.run(pool.complete("x" * 390, temperature=0))
    assert full.finish.reason == "stop" or full.finish.completion_tokens == 400 - 390


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("x " * 200, {}, RequestError, "400 tokens, and the context 400"),
        ("x" * 100_000, {}, RequestError, "100,000 bytes, and the context 400 tokens"),
        ("x" * 300, {}, RequestError, "a word of 300 characters, and at most 256"),
        ("", {}, RequestError, "the prompt is empty"),
        ("\ud800", {}, RequestError, "the text is not valid Unicode"),
        ("x", {"temperature": -1}, RequestError, "temperature is -1"),
        ("x", {"vector": "a path"}, VectorError, "a vector is bytes"),
        ("x", {"vector": b"?"}, FrameError, "1 bytes are not a frame"),
        ("x", {"vector": MicroVector([1.0] * 99)}, VectorError, "99 numbers"),
    ],
)
def test_bad_requests(pool, prompt, options, error, message, monkeypatch) -> None:
    monkeypatch.setattr(pool_module, "_UNBROKEN", 256)
    with pytest.raises(error, match=message):
        asyncio.run(pool.complete(prompt, **options))
    assert pool.busy().running == 0


def test_more_messages_than_the_context_has_tokens_are_not_rendered(pool, monkeypatch):
    monkeypatch.setattr(pool.model.chat_tokenizer, "encode_messages", lambda *_: pytest.fail("rendered"))
    with pytest.raises(RequestError, match="400 messages, and the context 400 tokens"):
        asyncio.run(pool.chat([{"role": "user", "content": "x"}] * 400))
    with pytest.raises(RequestError, match="bytes, and the context 400 tokens"):
        asyncio.run(pool.chat([{"role": "assistant", "tool_calls": ["x" * 100_000]}]))


def test_tokens_of_one_account_hold_nobody_up_and_closing_waits_for_them(pool, monkeypatch):
    real, begun, go_on = pool.model.chat_tokenizer.encode, threading.Event(), threading.Event()

    def encode(text: str) -> list[int]:
        if text == "slow":
            begun.set()
            assert go_on.wait(PATIENCE)
        return real(text)

    monkeypatch.setattr(pool.model.chat_tokenizer, "encode", encode)

    async def beside() -> None:
        how: Any = {"max_tokens": 3, "temperature": 0}
        slow = [asyncio.create_task(pool.complete("slow", account="a", user=str(n), **how)) for n in range(4)]
        await asyncio.to_thread(begun.wait, PATIENCE)
        assert (await pool.complete("fast", account="b", **how)).finish.completion_tokens <= 3
        closing = start(pool.model.close)
        assert blocked(closing)
        go_on.set()
        await asyncio.to_thread(closing.result, PATIENCE)
        for task in slow:
            with pytest.raises(TinyLoraError, match="closed"):
                await task

    asyncio.run(beside())


def test_what_makes_no_pool(tiny_bundle: Path) -> None:
    for options, message in (
        ({"slots": 0}, "a pool with slots=0 answers nobody"),
        ({"vector_bytes": b""}, r"takes no vector_bytes.* pass vector="),
    ):
        with pytest.raises((RequestError, OptionError), match=message):
            Pool(tiny_bundle, **options)
    with pytest.raises(TinyLoraError, match="no memory for 1,000,000,000,000 sequences of 512 tokens"):
        Pool(onnx_bundles.tiny(), slots=10**12)


def test_a_failure_of_the_engine_ends_what_runs_and_nothing_else(pool, monkeypatch):
    def failing(*_: Any) -> Any:
        raise TinyLoraError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(pool._loop.engine, "evaluate", failing)
        with pytest.raises(TinyLoraError, match="no memory"):
            asyncio.run(pool.complete(PROMPTS[1], max_tokens=4))
    assert asyncio.run(pool.complete(PROMPTS[1], max_tokens=4)).finish.cached_tokens == 0


def test_closing_ends_what_is_being_answered_and_its_threads(opened: Callable[..., Pool]) -> None:
    before = {*threading.enumerate()}

    async def closed(pool: Pool) -> list[Any]:
        how: Any = {"vector": vectors(pool, 1)[0], "temperature": 1}
        calls = [asyncio.create_task(pool.complete("x", user=str(i), **how)) for i in range(40)]
        while not pool.busy().running:
            await asyncio.sleep(0.001)
        await asyncio.gather(*(asyncio.to_thread(pool.close) for _ in range(3)))
        found = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(TinyLoraError, match="closed"):
            await pool.complete("x")
        return found

    found = asyncio.run(closed(pool := opened(slots=2)))
    assert any(isinstance(each, TinyLoraError) and "closed" in str(each) for each in found)
    for each in {each for each in threading.enumerate() if "tinylora" in each.name} - before:
        each.join(PATIENCE)
        assert not each.is_alive(), pool


def test_a_pool_over_a_model_that_is_there(opened: Callable[..., Pool]) -> None:
    with opened() as first:
        path = Path(first.model.model_path)  # type: ignore[attr-defined]
    with runtime.load(
        path, engine="llama" if isinstance(first.model, TinyLoraLlama) else "onnx", n_ctx=256, n_threads=1
    ) as llm:
        mine, other = (MicroVector.random(llm.bases.basis(numbers=13), 3.0, seed=seed) for seed in (1, 2))
        pool = Pool(llm, slots=3, n_ctx=256)
        expected = alone(pool, "abc", mine, 9)

        async def beside() -> set[str]:
            how: Any = {"vector": mine, "max_tokens": 9, "temperature": 0}
            calls = asyncio.gather(*(pool.complete("abc", user=str(i), **how) for i in range(12)))
            for vector in (mine, other) * 3:
                await asyncio.to_thread(llm.swap, vector)
                await asyncio.to_thread(llm.create_completion, "abc", max_tokens=2)
            return {answer.text for answer in await calls}

        assert asyncio.run(beside()) == {expected}
        with pytest.raises(OptionError, match="takes no policy, n_batch"):
            Pool(llm, policy=Policy(), n_batch=8)
    with pytest.raises(TinyLoraError, match="closed"):
        asyncio.run(pool.complete("abc"))
