"""Many users of one model at once: each gets the answer that he would get alone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from tinylora_edge import (
    ChecksumError,
    Hmac,
    MicroVector,
    OptionError,
    OverloadError,
    Policy,
    RequestError,
    RollbackError,
    SignatureError,
    TinyLoraError,
    VectorError,
)
from tinylora_edge.runtime import Pool, TinyLoraLlama

LIMIT = 20
PROMPTS = ["one two three", "one two four", "quite another text"]
# A seed whose greedy answers with this model do not end at once is not needed: an end is an answer too.
KV = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}


@pytest.fixture
def pool(tiny_bundle: Path) -> Iterator[Pool]:
    with Pool(tiny_bundle, contexts=2, slots=3, n_ctx=256, n_threads=2, **KV) as opened:
        yield opened


@pytest.fixture
def alone(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Callable[..., str]:
    """What a model that serves nobody else says."""
    llm = load(tiny_bundle, **KV)

    def answer(prompt: str, vector: MicroVector | None, **options: Any) -> str:
        llm.clear()
        if vector is not None:
            llm.swap(vector)
        given = {"max_tokens": LIMIT, "temperature": 0.0} | options
        return llm.create_completion(prompt, **given)["choices"][0]["text"]

    return answer


def vectors(pool: Pool, count: int, norm: float = 1.0) -> list[MicroVector]:
    return [MicroVector.random(pool.basis, norm, seed=seed) for seed in range(count)]


async def idle(pool: Pool) -> None:
    """Wait until nobody has anything; the runner's own limit ends it where that never comes."""
    while (load := pool.load()).running or load.waiting:
        await asyncio.sleep(0.005)


def test_every_user_gets_the_answer_that_he_would_get_alone(pool: Pool, alone: Callable[..., str]) -> None:
    users = dict(enumerate([None, *vectors(pool, 9)]))
    asked = [(user, prompt) for prompt in PROMPTS for user in users]

    async def all_at_once() -> list[str]:
        answers = await asyncio.gather(
            *(
                pool.complete(p, user=str(u), vector=users[u], max_tokens=LIMIT, temperature=0)
                for u, p in asked
            )
        )
        return [answer.text for answer in answers]

    found = asyncio.run(all_at_once())
    assert found == [alone(prompt, users[user]) for user, prompt in asked]
    assert len(set(found)) > 10, "the vectors differ"
    assert (pool.load().running, pool.load().waiting) == (0, 0)


def test_what_is_drawn_depends_on_the_seed_alone(pool: Pool) -> None:
    vector = vectors(pool, 1)[0]
    options: Any = {"vector": vector, "max_tokens": LIMIT, "seed": 7, "top_p": 0.9}

    async def drawn(beside: int) -> str:
        others = [pool.complete(PROMPTS[2], user=str(i), max_tokens=30) for i in range(beside)]
        answer, *_ = await asyncio.gather(pool.complete(PROMPTS[0], user="me", **options), *others)
        return answer.text

    assert asyncio.run(drawn(0)) == asyncio.run(drawn(5))


def test_a_users_next_request_finds_his_prefix(pool: Pool, alone: Callable[..., str]) -> None:
    mine, other = vectors(pool, 2)
    first = "a prompt of some length that is asked again with more behind it"
    longer = first + ", and more"

    async def ask(prompt: str, user: str, vector: MicroVector | None) -> tuple[int, str]:
        answer = await pool.complete(prompt, user=user, vector=vector, max_tokens=LIMIT, temperature=0)
        return answer.finish.cached_tokens, answer.text

    async def asked() -> list[tuple[int, str]]:
        return [
            await ask(first, "me", mine),
            await ask(PROMPTS[1], "somebody", mine),
            await ask(longer, "me", mine),
            await ask(longer, "stranger", mine),
            await ask(longer, "me", other),
        ]

    cached, texts = zip(*asyncio.run(asked()), strict=True)
    assert cached[2] >= len(first)
    assert [cached[i] for i in (0, 1, 3, 4)] == [0, 0, 0, 0], (
        "nobody finds what others asked, or another vector"
    )
    assert texts[2] == texts[3] == alone(longer, mine)
    assert texts[4] == alone(longer, other)


def test_whoever_leaves_frees_his_place(pool: Pool, held: Callable[..., Any]) -> None:
    async def leave() -> None:
        with held("drops") as at:
            stream = pool.stream(PROMPTS[0], raw=True, user="drops", max_tokens=200)
            await stream.start()
            await at.reached()
            del stream
            gc.collect()
        await idle(pool)
        with held("cancels") as at:
            task = asyncio.create_task(pool.complete(PROMPTS[0], user="cancels", max_tokens=200))
            await at.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await idle(pool)
        stream = pool.stream(PROMPTS[0], raw=True, max_tokens=200)
        await stream.start()
        stream.close()
        assert [piece async for piece in stream] == []
        await idle(pool)

    asyncio.run(leave())


def test_more_than_may_wait_are_refused(tiny_bundle: Path) -> None:
    async def too_many(pool: Pool) -> list[Any]:
        calls = [pool.complete(PROMPTS[0], user=str(i), max_tokens=30, temperature=0) for i in range(6)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with Pool(tiny_bundle, contexts=1, slots=1, n_ctx=256, waiting=2, n_threads=1) as pool:
        found = asyncio.run(too_many(pool))
        refused = [each for each in found if isinstance(each, OverloadError)]
        assert len(refused) >= 1
        texts = {each.text for each in found if not isinstance(each, BaseException)}
        assert len(texts) == 1
        assert len(refused) + sum(not isinstance(each, BaseException) for each in found) == 6
        asyncio.run(idle(pool))


def test_bytes_are_checked_at_every_request(tiny_bundle: Path) -> None:
    key, forger = Hmac(bytes(range(32))), Hmac(bytes(32))

    async def ask(pool: Pool, data: bytes, user: str = "alice") -> str:
        return (await pool.complete("abc", user=user, vector=data, max_tokens=3, temperature=0)).text

    with Pool(tiny_bundle, policy=Policy(keys=[key], max_norm=2), contexts=1, n_ctx=256, n_threads=1) as pool:
        basis, (vector,) = pool.basis, vectors(pool, 1)
        numbered = [
            MicroVector(vector.values, sequence=n).to_bytes(basis, tag=key, stream="alice") for n in range(4)
        ]
        assert asyncio.run(ask(pool, numbered[2])) == asyncio.run(ask(pool, numbered[3]))
        with pytest.raises(RollbackError, match="sequence 1, but 3 was already accepted from stream 'alice'"):
            asyncio.run(ask(pool, numbered[1]))
        bound = vector.to_bytes(basis, tag=key, stream="alice")
        with pytest.raises(SignatureError, match="another stream than 'bob'"):
            asyncio.run(ask(pool, bound, user="bob"))
        with pytest.raises(SignatureError):
            asyncio.run(ask(pool, vector.to_bytes(basis, tag=forger, stream="alice")))
        with pytest.raises(SignatureError):
            asyncio.run(ask(pool, vector.to_bytes(basis, stream="alice")))
        with pytest.raises(VectorError, match="norm"):
            asyncio.run(ask(pool, MicroVector.random(basis, 3.0).to_bytes(basis, tag=key, stream="alice")))
        damaged = bytearray(vector.to_bytes(basis, stream="alice"))
        damaged[9] ^= 1
        with pytest.raises(ChecksumError):
            asyncio.run(ask(pool, bytes(damaged)))
        asyncio.run(idle(pool))


def test_a_vector_that_is_too_large_harms_nobody_else(pool: Pool, alone: Callable[..., str]) -> None:
    huge = MicroVector.random(pool.basis, 1e30)
    vector = vectors(pool, 1)[0]

    async def together() -> list[Any]:
        good = [
            pool.complete(PROMPTS[0], user=str(i), vector=vector, max_tokens=LIMIT, temperature=0)
            for i in range(6)
        ]
        bad = [pool.complete(PROMPTS[1], user=f"bad {i}", vector=huge, max_tokens=LIMIT) for i in range(3)]
        return await asyncio.gather(*good, *bad, *good_again(), return_exceptions=True)

    def good_again() -> list[Any]:
        return [pool.complete(PROMPTS[2], user=str(i), max_tokens=LIMIT, temperature=0) for i in range(6)]

    found = asyncio.run(together())
    assert {each.text for each in found[:6]} == {alone(PROMPTS[0], vector)}
    assert all(isinstance(each, VectorError) and "too large" in str(each) for each in found[6:9])
    assert {each.text for each in found[9:]} == {alone(PROMPTS[2], None)}


def test_stop_texts_and_the_longest_answer(pool: Pool, alone: Callable[..., str]) -> None:
    whole = alone(PROMPTS[0], None)
    stop = whole[3:5]
    answer = asyncio.run(pool.complete(PROMPTS[0], max_tokens=LIMIT, temperature=0, stop=stop))
    assert answer.text == whole.partition(stop)[0]
    assert answer.finish.reason == "stop"
    short = asyncio.run(pool.complete(PROMPTS[0], max_tokens=2, temperature=0))
    assert (short.finish.reason, short.finish.completion_tokens) == ("length", 2)
    assert short.finish.prompt_tokens == len(PROMPTS[0])
    full = asyncio.run(pool.complete("x" * 250, temperature=0))
    assert full.finish.reason == "stop" or full.finish.completion_tokens == 256 - 250


def test_log_probabilities_come_with_the_tokens(pool: Pool) -> None:
    answer = asyncio.run(pool.complete(PROMPTS[0], max_tokens=5, temperature=0, logprobs=3))
    assert len(answer.tokens) == answer.finish.completion_tokens
    for token in answer.tokens:
        assert token.likeliest[0] == (token.data, pytest.approx(token.logprob))
        assert len(token.likeliest) == 3


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("x" * 300, {}, RequestError, "300 tokens, and the context 256"),
        ("x", {"temperature": -1}, RequestError, "temperature is -1"),
        ("x", {"tempature": 0}, OptionError, "did you mean 'temperature'"),
        ("x", {"vector": "a path"}, VectorError, "a vector is bytes"),
        ("x", {"vector": b"?"}, VectorError, "no vector for this basis"),
        ("x", {"vector": MicroVector([[1.0]])}, TinyLoraError, "values"),
    ],
)
def test_bad_requests(
    pool: Pool, prompt: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        asyncio.run(pool.complete(prompt, **options))
    assert pool.load().running == 0


def test_closing_ends_what_is_being_answered(tiny_bundle: Path) -> None:
    async def closed(pool: Pool) -> list[Any]:
        calls = [asyncio.create_task(pool.complete("x", user=str(i), temperature=1)) for i in range(40)]
        while not pool.load().running:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(pool.close)
        found = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(TinyLoraError, match="closed"):
            await pool.complete("x")
        return found

    pool = Pool(tiny_bundle, contexts=1, slots=2, n_ctx=2048, n_threads=1)
    found = asyncio.run(closed(pool))
    assert any(isinstance(each, TinyLoraError) and "closed" in str(each) for each in found)
    pool.close()


def test_a_pool_over_a_model_that_is_there(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> None:
    llm = load(tiny_bundle)
    mine, other = (MicroVector.random(llm.basis, 3.0, seed=seed) for seed in (1, 2))
    llm.swap(mine)
    pool = Pool(llm, contexts=1, n_ctx=256)
    expected = llm.create_completion("abc", max_tokens=8, temperature=0)["choices"][0]["text"]

    given: Any = {"max_tokens": 8, "temperature": 0}

    async def asked() -> list[str]:
        texts = [(await pool.complete("abc", vector=v, **given)).text for v in (mine, other)]
        llm.swap(other)  # beside the pool, whose users' vectors stay theirs
        return [*texts, (await pool.complete("abc", vector=mine, **given)).text]

    first, second, again = asyncio.run(asked())
    assert first == again == expected != second
    with pytest.raises(OptionError, match="takes no policy, n_batch"):
        Pool(llm, policy=Policy(), n_batch=8)

    async def beside() -> list[str]:
        calls = [pool.complete("abc", user=str(i), vector=mine, **given) for i in range(20)]
        found = asyncio.gather(*calls)
        for vector in (mine, other) * 5:
            await asyncio.to_thread(llm.swap, vector)
            await asyncio.to_thread(llm.create_completion, "abc", max_tokens=2)
        return [answer.text for answer in await found]

    assert set(asyncio.run(beside())) == {expected}
    llm.close()
    with pytest.raises(TinyLoraError, match="closed"):
        asyncio.run(pool.complete("abc"))


@pytest.mark.parametrize("name", ["contexts", "slots", "n_ctx", "waiting", "n_threads"])
def test_a_pool_of_nothing(tiny_bundle: Path, name: str) -> None:
    for number in (0, -1):
        with pytest.raises(RequestError, match=f"a pool with {name}={number} answers nobody"):
            Pool(tiny_bundle, **{name: number})


def test_a_pool_has_no_vector_of_its_own(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"takes no vector_bytes.* pass vector="):
        Pool(tiny_bundle, vector_bytes=b"")


def test_two_that_close_at_once_wait_for_each_other(tiny_bundle: Path) -> None:
    """Neither frees the model while a context still computes."""

    async def closed() -> list[Any]:
        pool = Pool(tiny_bundle, contexts=2, slots=2, n_ctx=2048, n_threads=2)
        calls = [asyncio.create_task(pool.complete("x" * 1500, user=str(i))) for i in range(6)]
        while not pool.load().running:
            await asyncio.sleep(0.001)
        await asyncio.gather(*(asyncio.to_thread(pool.close) for _ in range(3)))
        return await asyncio.gather(*calls, return_exceptions=True)

    for _ in range(3):
        assert len(asyncio.run(closed())) == 6
