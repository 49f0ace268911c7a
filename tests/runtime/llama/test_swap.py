"""What stays and what changes when the vector is exchanged: bit for bit."""

from __future__ import annotations

import converter
import gguf
import models
import numpy as np
import pytest
import support
from bad_vectors import bad_vectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cpp import LlamaDiskCache, LlamaRAMCache

from tinylora_edge import FrameError, MicroVector, Policy

PROMPT = list(b"one two three four")
TEXTS = ("one two three four", "one two three five", "one", "quite another text")


@pytest.fixture
def llm(load, tiny_bundle):
    return load(tiny_bundle)


def vectors(bases, norm=0.5):
    return [MicroVector.random(basis, norm, seed=seed) for seed, basis in enumerate(support.each_size(bases))]


def outputs(llm, texts=TEXTS):
    tokens = [models.llama_greedy(llm, llm.tokenize(text.encode()), 6) for text in texts]
    completions = [llm(text, max_tokens=6, temperature=0.0)["choices"][0] for text in texts]
    logits = models.llama_logits(llm, llm.tokenize(texts[0].encode()))
    return tokens, completions, logits


def same(left, right):
    return left[:2] == right[:2] and np.array_equal(left[2], right[2])


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_vector_is_the_base(llm, load_plain, tiny_bundle, zero):
    expected = outputs(load_plain(tiny_bundle))
    for vector in vectors(llm.bases):
        llm.swap(vector)
        assert not same(outputs(llm), expected)
        llm.swap(MicroVector(np.full_like(vector.values, zero)))
        assert same(outputs(llm), expected)
        assert llm.vector is not None


def test_clearing_after_a_vector_that_overflowed_gives_the_base(load, load_plain, tiny_bundle):
    llm = load(tiny_bundle, policy=Policy(max_norm=np.inf))
    llm.swap(MicroVector(np.full(13, 1e30, np.float32)))
    assert not np.isfinite(models.llama_logits(llm, PROMPT * 3)).all()
    llm.clear()
    assert same(outputs(llm), outputs(load_plain(tiny_bundle)))


def test_swap_takes_and_returns_vectors_in_every_form(llm, load, tiny_bundle):
    for vector in vectors(llm.bases):
        data = vector.to_bytes(llm.bases.of(vector))
        expected = outputs(load(tiny_bundle, vector))
        for form in (vector, data, bytearray(data), memoryview(data)):
            llm.clear()
            assert llm.swap(form) == vector
            assert llm.vector == vector
            assert same(outputs(llm), expected)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["swap", "using"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["generate", "complete", "stream", "eval"]), st.sampled_from(TEXTS)),
        st.tuples(st.sampled_from(["clear", "refuse"]), st.none()),
    ),
    max_size=12,
)


def perform(llm, choices, operation, argument):
    match operation:
        case "swap":
            llm.swap(choices[argument].to_bytes(llm.bases.of(choices[argument])))
            return choices[argument]
        case "clear":
            llm.clear()
            return None
        case "using":
            with llm.using(choices[argument]):
                models.llama_greedy(llm, llm.tokenize(TEXTS[0].encode()), 3)
        case "generate":
            models.llama_greedy(llm, llm.tokenize(argument.encode()), 4)
        case "complete":
            llm(argument, max_tokens=4, temperature=0.0)
        case "stream":
            stream = llm(argument, max_tokens=8, temperature=0.0, stream=True)
            next(stream)
            stream.close()
        case "eval":
            llm.reset()
            llm.eval(llm.tokenize(argument.encode()))
        case "refuse":
            with pytest.raises(FrameError):
                llm.swap(b"")
    return ...


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "LlamaRAMCache"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, last=st.integers(-1, 4))
def test_any_sequence_of_exchanges_ends_as_a_fresh_load(load, tiny_bundle, cached, operations, last):
    llm = load(tiny_bundle)
    if cached:
        llm.set_cache(LlamaRAMCache())
    choices = vectors(llm.bases)
    expected = None
    for operation, argument in operations:
        now = perform(llm, choices, operation, argument)
        expected = expected if now is ... else now
        assert llm.vector == expected
    perform(llm, choices, *(("clear", None) if last < 0 else ("swap", last)))

    fresh = load(tiny_bundle, None if last < 0 else choices[last])
    if cached:
        fresh.set_cache(LlamaRAMCache())
    assert same(outputs(llm), outputs(fresh))
    llm.close()
    fresh.close()


def test_a_cache_with_states_of_another_vector_does_no_harm(llm, load, tiny_bundle, tmp_path):
    cache = LlamaDiskCache(str(tmp_path / "cache"))
    first, second, *_ = vectors(llm.bases)
    llm.swap(first)
    llm.set_cache(cache)
    llm(TEXTS[0], max_tokens=6, temperature=0.0)
    llm.set_cache(None)
    llm.swap(second)
    llm.set_cache(cache)
    assert same(outputs(llm), outputs(load(tiny_bundle, second)))


def test_a_swap_empties_the_cache_and_a_refused_one_keeps_it(llm):
    cache = LlamaRAMCache()
    llm.set_cache(cache)
    for exchange in (lambda: llm.swap(vectors(llm.bases)[0]), llm.clear):
        llm(TEXTS[0], max_tokens=2, temperature=0.0)
        with pytest.raises(FrameError):
            llm.swap(b"")
        assert len(cache.cache_state) == 1
        exchange()
        assert len(cache.cache_state) == 0


def test_the_callers_lora_stays_in_force(llm, load, load_plain, tiny_bundle, tmp_path):
    rng, lora = np.random.default_rng(5), tmp_path / "lora.gguf"
    writer = gguf.GGUFWriter(lora, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4.0)
    for part, shape in (("a", (4, 64)), ("b", (models.VOCABULARY, 4))):  # of a matrix without factors
        writer.add_tensor(f"output.weight.lora_{part}", np.float32(rng.normal(size=shape) / 4))
    converter.finish(writer, lora)
    vector = vectors(llm.bases)[-1]  # of another rank than the LoRA
    options = {"lora_path": str(lora), "lora_scale": 0.5}
    plain = outputs(load_plain(tiny_bundle, **options))
    assert not same(plain, outputs(llm))

    with_lora = load(tiny_bundle, **options)
    assert same(outputs(with_lora), plain)
    with_lora.swap(vector)
    both = outputs(with_lora)
    assert not same(both, plain)
    llm.swap(vector)
    assert not same(both, outputs(llm))
    assert same(both, outputs(load(tiny_bundle, vector, **options)))
    with_lora.swap(MicroVector.zeros(llm.bases.basis(rank=8)))
    assert same(outputs(with_lora), plain)
    with_lora.swap(vector)
    with_lora.clear()
    assert same(outputs(with_lora), plain)


def test_refused_vectors_change_nothing(smollm2_bundle, load):
    llm = load(smollm2_bundle)
    prompt = llm.tokenize(b"The sea is")
    before = llm.swap(MicroVector.random(llm.bases.basis(rank=8), 0.3, seed=4))
    expected = models.llama_logits(llm, prompt)
    for error, vector in bad_vectors(llm.bases.basis(numbers=13)):
        with pytest.raises(error):
            llm.swap(vector)
        with pytest.raises(error), llm.using(vector):
            pytest.fail("the block must not be entered")
        assert llm.vector is before
    assert np.array_equal(models.llama_logits(llm, prompt), expected)
