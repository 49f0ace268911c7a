"""Exchanging the vector of an ONNX model: exact, all or nothing, never mixed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import BusyError, ChecksumError, MicroVector, TinyLoraError, VectorError, runtime
from tinylora_edge.runtime import TinyLoraOnnx

PROMPT = [72, 101, 108, 108, 111, 32, 119]
COUNT = 8


@pytest.fixture(params=["default", "required"])
def flavour(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["tiled", "dense"])
def bundle(request: pytest.FixtureRequest, flavour: str) -> Path:
    return onnx_bundles.tiny(flavour, request.param)


@pytest.fixture
def llm(bundle: Path) -> TinyLoraOnnx:
    return runtime.load(bundle, engine="onnx", n_ctx=64, n_threads=1)


@pytest.fixture
def vectors(bundle: Path) -> list[MicroVector]:
    return onnx_bundles.vectors(bundle, 3)


def expected(bundle: Path, vector: MicroVector | None, prompt: list[int] = PROMPT) -> list[int]:
    return onnx_bundles.greedy(bundle, prompt, COUNT, vector)


def answer(llm: TinyLoraOnnx, prompt: list[int] = PROMPT) -> list[int]:
    return list(llm.generate(prompt, max_tokens=COUNT))


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(257)] if 257 in tokens else tokens


def test_the_vectors_of_the_tests_say_different_things(bundle: Path, vectors: list[MicroVector]) -> None:
    said = {tuple(expected(bundle, vector)) for vector in [None, *vectors]}
    assert len(said) == 4


def test_any_sequence_of_exchanges_equals_a_fresh_model(
    llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]
) -> None:
    a, b, c = vectors
    for vector in (None, a, b, a, None, c, c, None, b):
        if vector is None:
            llm.clear()
        else:
            assert llm.swap(vector) == vector
        assert llm.vector == vector
        assert answer(llm) == until_end(expected(bundle, vector))


def test_a_block_ends_where_it_began(llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]) -> None:
    a, b, _ = vectors
    llm.swap(a)
    with llm.using(b.to_bytes(llm.basis)) as active:
        assert active == b
        assert answer(llm) == until_end(expected(bundle, b))
        with llm.using(a):
            assert answer(llm) == until_end(expected(bundle, a))
        assert answer(llm) == until_end(expected(bundle, b))
    assert answer(llm) == until_end(expected(bundle, a))
    with pytest.raises(RuntimeError, match="on purpose"), llm.using(b):
        raise RuntimeError("on purpose")
    assert llm.vector == a


def test_a_refused_vector_changes_nothing(
    llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]
) -> None:
    llm.swap(vectors[0])
    before = answer(llm)
    good = vectors[1].to_bytes(llm.basis)
    for error, bad in (
        (ChecksumError, good[:-1] + bytes([good[-1] ^ 1])),
        (VectorError, b""),
        (VectorError, MicroVector(np.zeros((9, 9), np.float32))),
    ):
        with pytest.raises(error):
            llm.swap(bad)
        assert llm.vector == vectors[0]
        assert answer(llm) == before


def test_the_beginning_of_a_prompt_is_used_again_with_the_same_vector_alone(
    llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    appended: list[int] = []
    import tinylora_edge.runtime.onnx.decoder as decoder

    real = decoder.append_prompt

    def spy(generator: Any, tokens: list[int], pad: int) -> None:
        appended.append(len(tokens))
        real(generator, tokens, pad)

    monkeypatch.setattr(decoder, "append_prompt", spy)
    llm.swap(vectors[0])
    longer = [*PROMPT, 120, 121]
    branch = [*PROMPT[:4], 90, 91, 92]
    for prompt, fresh in ((PROMPT, 7), (longer, 2), (PROMPT, 1), (branch, 3), ([65, 66], 2)):
        appended.clear()
        assert answer(llm, prompt) == until_end(expected(bundle, vectors[0], prompt))
        assert appended[0] <= fresh + 1
    llm.swap(vectors[1])
    appended.clear()
    assert answer(llm, [65, 66, 67]) == until_end(expected(bundle, vectors[1], [65, 66, 67]))
    assert appended[0] == 3, "keys of the old vector were used"


def test_a_prompt_that_ends_with_padding(llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]) -> None:
    pad = 258
    llm.swap(vectors[0])
    for prompt in ([72, 101, pad], [72, pad, pad], [pad], [pad, pad, 72]):
        assert answer(llm, prompt) == until_end(expected(bundle, vectors[0], prompt))


# Streams and threads


def test_an_exchange_inside_an_own_stream_is_refused(llm: TinyLoraOnnx, vectors: list[MicroVector]) -> None:
    stream = llm.generate(PROMPT, max_tokens=COUNT)
    next(stream)
    with pytest.raises(BusyError):
        llm.swap(vectors[0])
    with pytest.raises(BusyError):
        llm.clear()
    stream.close()
    llm.swap(vectors[0])


def test_a_stream_ends_with_the_block_that_it_was_begun_in(
    llm: TinyLoraOnnx, vectors: list[MicroVector]
) -> None:
    with llm.using(vectors[0]):
        stream = llm.create_completion("Hello", max_tokens=COUNT, stream=True)
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_whose_place_was_taken_says_so(llm: TinyLoraOnnx) -> None:
    stream = llm.generate(PROMPT, max_tokens=COUNT)
    next(stream)
    answer(llm)
    with pytest.raises(BusyError, match="another generation"):
        next(stream)


def test_a_stream_has_one_vector_from_its_first_token_to_its_last(
    llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]
) -> None:
    llm.swap(vectors[0])
    stream = llm.generate(PROMPT, max_tokens=COUNT)
    got = [next(stream)]
    other = threading.Thread(target=llm.swap, args=(vectors[1],))
    other.start()
    time.sleep(0.05)
    assert llm.vector == vectors[0], "the exchange waits"
    with pytest.raises(BusyError):
        llm_swap_in_a_thread(llm, vectors[2])
    got += list(stream)
    other.join(10)
    assert got == until_end(expected(bundle, vectors[0]))
    assert llm.vector == vectors[1]
    assert answer(llm) == until_end(expected(bundle, vectors[1]))


def llm_swap_in_a_thread(llm: TinyLoraOnnx, vector: MicroVector) -> None:
    raised: list[BaseException] = []

    def swap() -> None:
        try:
            llm.swap(vector, wait=False)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=swap)
    thread.start()
    thread.join(10)
    if raised:
        raise raised[0]


def test_many_threads_never_mix(llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]) -> None:
    right = {vector: until_end(expected(bundle, vector)) for vector in vectors}
    wrong: list[Any] = []

    def work(vector: MicroVector) -> None:
        for _ in range(6):
            with llm.using(vector):
                if (found := answer(llm)) != right[vector]:
                    wrong.append((vector, found))

    threads = [threading.Thread(target=work, args=(vector,)) for vector in vectors for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert llm.vector is None


# Loops of one's own


def own(llm: TinyLoraOnnx, generator: Any) -> np.ndarray:
    generator.append_tokens(np.array(PROMPT, np.int32))
    return np.array(generator.get_logits()).reshape(-1)


def test_an_own_generator_has_the_active_vector_and_keeps_it(
    llm: TinyLoraOnnx, bundle: Path, vectors: list[MicroVector]
) -> None:
    base = llm.generator()
    llm.swap(vectors[0])
    first = llm.generator(max_length=32)
    llm.swap(vectors[1])
    second = llm.generator()
    for generator, vector in ((base, None), (first, vectors[0]), (second, vectors[1])):
        right = onnx_bundles.logits(bundle, PROMPT, vector)
        assert np.abs(own(llm, generator) - right).max() <= 1e-5
    llm.close()
    first.generate_next_token()
    assert first.token_count() == len(PROMPT) + 1


def test_what_genai_would_ignore_or_mix_silently(llm: TinyLoraOnnx) -> None:
    generator = llm.generator()
    values = np.zeros((1, llm.basis.size), np.float32)
    with pytest.raises(VectorError, match="set_model_input"):
        generator.set_model_input("tinylora_v", values)
    with pytest.raises(VectorError, match=r"no such input.*input_ids"):
        generator.set_model_input("tinylora_w", values)
    with pytest.raises(VectorError, match="adapter 'mine'"):
        generator.set_active_adapter(object(), "mine")


def test_a_width_is_checked_before_genai_sees_it(llm: TinyLoraOnnx) -> None:
    with pytest.raises(TinyLoraError, match=f"takes {llm.basis.size}"):
        llm.swap(MicroVector(np.zeros((1, llm.basis.size + 1), np.float32)))
