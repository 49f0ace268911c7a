"""Many users in one running batch of ONNX Runtime: each gets the answer that he would get alone."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_bundles
import psutil
import pytest

from tinylora_edge import (
    BaseMismatchError,
    MicroVector,
    OptionError,
    OverloadError,
    RequestError,
    TinyLoraError,
    VectorError,
    runtime,
)
from tinylora_edge.runtime import Pool, TinyLoraOnnx
from tinylora_edge.runtime.onnx.pool.engine import CHUNK
from tinylora_edge.runtime.onnx.session import SPIN
from tinylora_edge.runtime.pool.request import Answer

LIMIT = 24
PROMPTS = ["a", "one two three", "quite another text, and a longer one", "x" * (CHUNK + 1), "y" * 2 * CHUNK]
# Of both flavours and both forms of a basis, and a layer with biases.
BUNDLES = [("default", "tiled", "llama"), ("required", "dense", "llama"), ("default", "dense", "qwen2")]


@pytest.fixture(scope="module", params=BUNDLES, ids="-".join)
def bundle(request: pytest.FixtureRequest) -> Path:
    return onnx_bundles.tiny(*request.param)


@pytest.fixture(scope="module")
def tiny() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def pool(tiny: Path) -> Iterator[Pool]:
    with Pool(tiny, slots=4, n_ctx=400, n_threads=1) as opened:
        yield opened


def vectors(pool: Pool, count: int, norm: float = 1.0) -> list[MicroVector]:
    return [MicroVector.random(pool.basis, norm, seed=seed) for seed in range(count)]


def alone(llm: TinyLoraOnnx, prompt: str, vector: MicroVector | None, limit: int = LIMIT) -> str:
    """What a model that serves nobody else says."""
    llm.clear()
    if vector is not None:
        llm.swap(vector)
    return llm.create_completion(prompt, max_tokens=limit, temperature=0)["choices"][0]["text"]


def bits(answer: Answer) -> list[float]:
    return [token.logprob for token in answer.tokens]


async def idle(pool: Pool) -> None:
    while (load := pool.load()).running or load.waiting:
        await asyncio.sleep(0.002)


def test_every_user_gets_the_answer_that_he_would_get_alone(bundle: Path) -> None:
    """They come one after the other and leave at other times, more of them than there are rows."""
    chance = random.Random(0)
    with Pool(bundle, slots=5, n_ctx=400, n_threads=1) as pool:
        users = [None, *vectors(pool, 7)]
        asked = [(u, p, 1 + chance.randrange(2 * LIMIT)) for u in range(8) for p in PROMPTS]
        chance.shuffle(asked)

        async def one(number: int, user: int, prompt: str, limit: int) -> str:
            await asyncio.sleep(0.003 * number)
            given: Any = {"user": str(user), "vector": users[user], "max_tokens": limit}
            if number % 3:
                return (await pool.complete(prompt, temperature=0, **given)).text
            drawn = asyncio.create_task(pool.complete(prompt, temperature=2, **given))  # beside them
            text = (await pool.complete(prompt, temperature=0, **given)).text
            drawn.cancel()
            return text

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(one(n, *each) for n, each in enumerate(asked)))

        found = asyncio.run(all_of_them())
        asyncio.run(idle(pool))
    with runtime.load(bundle, engine="onnx", n_ctx=400, n_threads=1) as llm:
        assert found == [alone(llm, prompt, users[user], limit) for user, prompt, limit in asked]
    assert len(set(found)) > 20, "the vectors differ"


def test_an_answer_has_the_same_bits_whoever_is_answered_beside_it(tiny: Path) -> None:
    """With one row or seven, from the first row or the last, at once or after others."""
    with Pool(tiny, slots=7, n_ctx=400, n_threads=1) as pool:
        mine, *others = vectors(pool, 7)
        options: Any = {"vector": mine, "max_tokens": LIMIT, "temperature": 0, "logprobs": 0}

        async def asked(beside: int, prompt: str) -> list[float]:
            tasks = []
            for number in range(beside):
                given: Any = {"vector": others[number % 6], "max_tokens": 5 * (number + 1), "temperature": 1}
                call = pool.complete(PROMPTS[number % 5], user=f"{beside} {number}", **given)
                tasks.append(asyncio.create_task(call))
                await asyncio.sleep(0.001 * number)
            answer, *_ = await asyncio.gather(pool.complete(prompt, user=f"me {beside}", **options), *tasks)
            return bits(answer)

        for prompt in PROMPTS:
            first = asyncio.run(asked(0, prompt))
            assert len(first) > 2
            assert [asyncio.run(asked(beside, prompt)) for beside in (1, 3, 6, 11)] == [first] * 4


def test_what_is_drawn_depends_on_the_seed_alone(pool: Pool) -> None:
    options: Any = {"vector": vectors(pool, 1)[0], "max_tokens": LIMIT, "seed": 7, "top_p": 0.9}

    async def drawn(beside: int) -> str:
        others = [pool.complete(PROMPTS[2], user=str(i), max_tokens=30) for i in range(beside)]
        answer, *_ = await asyncio.gather(pool.complete(PROMPTS[1], user="me", **options), *others)
        return answer.text

    assert asyncio.run(drawn(0)) == asyncio.run(drawn(5))


def test_a_users_next_request_finds_his_prompt(pool: Pool) -> None:
    mine, other = vectors(pool, 2)
    first = "a prompt of some length that is asked again with more behind it"

    async def ask(prompt: str, user: str, vector: MicroVector) -> Answer:
        return await pool.complete(
            prompt, user=user, vector=vector, max_tokens=LIMIT, temperature=0, logprobs=0
        )

    async def asked() -> list[Answer]:
        begun = await ask(first, "me", mine)
        longer = first + begun.text + ", and more"
        return [
            begun,
            await ask(PROMPTS[1], "somebody", mine),
            await ask(longer, "me", mine),
            await ask(longer, "stranger", mine),
            await ask(longer, "me", other),
            await ask(longer, "me", mine),
        ]

    answers = asyncio.run(asked())
    cached = [answer.finish.cached_tokens for answer in answers]
    # What was generated is evaluated again: its keys have other bits than those of a prompt.
    assert cached[:5] == [0, 0, len(first), 0, 0], "nobody finds what others asked, or another vector"
    assert cached[5] == answers[5].finish.prompt_tokens - 2
    assert bits(answers[2]) == bits(answers[3]) == bits(answers[5]) != bits(answers[4])


def test_whoever_leaves_frees_his_row(pool: Pool, held: Callable[..., Any]) -> None:
    vector = vectors(pool, 1)[0]
    given: Any = {"user": "stays", "vector": vector, "max_tokens": 60, "temperature": 0, "logprobs": 0}

    async def leave() -> None:
        expected = bits(await pool.complete(PROMPTS[2], **given))
        staying = asyncio.create_task(pool.complete(PROMPTS[2], **given))
        with held("drops") as at:
            stream = pool.stream(PROMPTS[0], raw=True, user="drops", max_tokens=300)
            await stream.start()
            await at.reached()
            del stream
            gc.collect()
        with held("cancels") as at:
            task = asyncio.create_task(pool.complete(PROMPTS[1], user="cancels", max_tokens=300))
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
        assert bits(await staying) == expected
        await idle(pool)

    asyncio.run(leave())


def test_a_row_is_free_within_one_token(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, held: Callable[..., Any]
) -> None:
    engine: Any = pool._scheduler._slots.engine  # type: ignore[attr-defined]
    steps: list[int] = []
    real = engine.step

    def counted(tokens: list[int], lengths: list[int]) -> Any:
        steps.append(len(tokens))
        return real(tokens, lengths)

    monkeypatch.setattr(engine, "step", counted)

    async def left() -> int:
        with held("leaves", after=2) as at:
            stream = pool.stream(PROMPTS[1], raw=True, user="leaves", max_tokens=350, temperature=1, seed=3)
            await stream.start()
            await at.reached()
            before = len(steps)
            stream.close()
        await idle(pool)
        return len(steps) - before

    assert asyncio.run(left()) <= 1


def test_more_than_may_wait_are_refused(tiny: Path) -> None:
    async def too_many(pool: Pool) -> list[Any]:
        calls = [pool.complete(PROMPTS[1], user=str(i), max_tokens=90, temperature=0) for i in range(9)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with Pool(tiny, slots=1, n_ctx=256, waiting=2, n_threads=1) as pool:
        found = asyncio.run(too_many(pool))
        refused = [each for each in found if isinstance(each, OverloadError)]
        assert len(refused) >= 1
        assert len({each.text for each in found if not isinstance(each, BaseException)}) == 1
        asyncio.run(idle(pool))


def test_a_vector_that_is_too_large_harms_nobody_else(pool: Pool) -> None:
    huge = MicroVector.random(pool.basis, 1e30)
    vector = vectors(pool, 1)[0]
    given: Any = {"max_tokens": LIMIT, "temperature": 0, "logprobs": 0}

    async def good() -> Answer:
        return await pool.complete(PROMPTS[2], user="good", vector=vector, **given)

    async def together() -> list[Any]:
        calls = []
        for number in range(4):
            calls += [pool.complete(PROMPTS[number % 2], user=f"bad {number}", vector=huge, **given), good()]
        return await asyncio.gather(*calls, return_exceptions=True)

    expected = bits(asyncio.run(good()))
    for _ in range(2):  # and whoever gets their rows afterwards
        found = asyncio.run(together())
        assert [bits(each) for each in found[1::2]] == [expected] * 4
        assert all(isinstance(each, VectorError) and "too large" in str(each) for each in found[::2])


def test_stop_texts_log_probabilities_and_the_longest_answer(pool: Pool, tiny: Path) -> None:
    with runtime.load(tiny, engine="onnx", n_ctx=256, n_threads=1) as llm:
        whole = alone(llm, PROMPTS[1], None)
    stop = whole[3:5]
    answer = asyncio.run(pool.complete(PROMPTS[1], max_tokens=LIMIT, temperature=0, stop=stop))
    assert (answer.text, answer.finish.reason) == (whole.partition(stop)[0], "stop")
    short = asyncio.run(pool.complete(PROMPTS[1], max_tokens=2, temperature=0, logprobs=3))
    assert (short.finish.reason, short.finish.completion_tokens) == ("length", 2)
    for token in short.tokens:
        assert token.likeliest[0] == (token.data, pytest.approx(token.logprob))
        assert len(token.likeliest) == 3
    full = asyncio.run(pool.complete("x" * 390, temperature=0))
    assert full.finish.reason == "stop" or full.finish.completion_tokens == 400 - 390


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("x" * 400, {}, RequestError, "400 tokens, and the context 400"),
        ("", {}, RequestError, "the prompt is empty"),
        ("\ud800", {}, RequestError, "the text is none"),
        ("x", {"vector": b"?"}, VectorError, "no frame"),
        ("x", {"vector": MicroVector([[1.0]])}, TinyLoraError, "values"),
    ],
)
def test_bad_requests(
    pool: Pool, prompt: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        asyncio.run(pool.complete(prompt, **options))
    with pytest.raises(RequestError, match="does not render"):
        asyncio.run(pool.chat([{"role": object()}]))
    assert pool.load().running == 0


def test_what_makes_no_pool(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="contexts=2: ONNX Runtime answers everybody in one batch"):
        Pool(tiny, contexts=2)
    with pytest.raises(BaseMismatchError, match=r"GroupQueryAttention.*attention_mask"):
        Pool(_with_another_input(tiny, tmp_path / "other"))


def _with_another_input(bundle: Path, copy: Path) -> Path:
    """A copy whose graph takes its mask under another name, as a graph of another maker does."""
    shutil.copytree(bundle, copy)
    path = copy / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        if value.name == "attention_mask":
            value.name = "my_attention_mask"
    for node in model.graph.node:
        node.input[:] = ["my_attention_mask" if name == "attention_mask" else name for name in node.input]
    onnx.save(model, path)
    return copy


def test_a_failure_of_the_engine_ends_what_runs_and_nothing_else(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = pool._scheduler._slots.engine  # type: ignore[attr-defined]

    def failing(*_: Any) -> Any:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "step", failing)
        with pytest.raises(TinyLoraError, match="ONNX Runtime failed: no memory"):
            asyncio.run(pool.complete(PROMPTS[1], max_tokens=4))
    assert asyncio.run(pool.complete(PROMPTS[1], max_tokens=4)).finish.cached_tokens == 0


def test_closing_ends_what_is_being_answered(tiny: Path) -> None:
    async def closed(pool: Pool) -> list[Any]:
        calls = [asyncio.create_task(pool.complete("x", user=str(i), temperature=1)) for i in range(40)]
        while not pool.load().running:
            await asyncio.sleep(0.001)
        await asyncio.gather(*(asyncio.to_thread(pool.close) for _ in range(2)))
        found = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(TinyLoraError, match="closed"):
            await pool.complete("x")
        return found

    pool = Pool(tiny, slots=2, n_ctx=400, n_threads=1)
    found = asyncio.run(closed(pool))
    assert any(isinstance(each, TinyLoraError) and "closed" in str(each) for each in found)


def test_a_pool_over_a_model_that_is_there(tiny: Path) -> None:
    """Beside it the model answers, and is swapped; `achat` takes the vector that is active."""
    with runtime.load(tiny, engine="onnx", n_ctx=256, n_threads=1) as llm:
        mine, other = (MicroVector.random(llm.basis, 1.0, seed=seed) for seed in (1, 2))
        expected = [alone(llm, "abc", vector, 9) for vector in (mine, other)]
        with Pool(llm, slots=3, n_ctx=256) as pool:

            async def beside() -> set[str]:
                given: Any = {"vector": mine, "max_tokens": 9, "temperature": 0}
                calls = asyncio.gather(*(pool.complete("abc", user=str(i), **given) for i in range(12)))
                for vector in (mine, other) * 3:
                    await asyncio.to_thread(llm.swap, vector)
                    await asyncio.to_thread(llm.create_completion, "abc", max_tokens=2)
                return {answer.text for answer in await calls}

            assert asyncio.run(beside()) == {expected[0]}


def test_its_threads_spin_as_briefly_as_a_models(tiny: Path) -> None:
    limit = "session.intra_op.spin_duration_us"
    for given, expected in (({}, SPIN[limit]), ({limit: "77"}, "77")):
        with Pool(tiny, slots=2, n_ctx=32, n_threads=1, session_options=given) as pool:
            options = pool._scheduler._slots.engine._session.get_session_options()
            assert options.get_session_config_entry(limit) == expected


def test_memory_stays_flat(tiny: Path) -> None:
    """Hundreds of requests of all lengths, of users who come and go."""
    chance = random.Random(1)
    with Pool(tiny, slots=8, n_ctx=400, n_threads=1) as pool:
        of = vectors(pool, 16)

        async def load(count: int) -> None:
            async def one(number: int) -> None:
                user, prompt = number % 16, "m" * chance.randrange(1, 300)
                given: Any = {"max_tokens": chance.randrange(1, 20), "temperature": number % 2}
                await pool.complete(prompt, user=str(user), vector=of[user], **given)

            await asyncio.gather(*(one(number) for number in range(count)))

        asyncio.run(load(150))
        gc.collect()
        before = psutil.Process().memory_info().rss
        asyncio.run(load(300))
        gc.collect()
        assert psutil.Process().memory_info().rss - before < 20 << 20
