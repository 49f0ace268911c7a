"""It is a `llama_cpp.Llama`: what its users pass and call works as they know it."""

from __future__ import annotations

import llama_cpp
import models
import numpy as np
import pytest

from tinylora_edge import MicroVector, TinyLoraError, VectorError

PROMPT = list(b"one two three four")


@pytest.fixture
def llm(load, tiny_bundle):
    return load(tiny_bundle)


@pytest.fixture
def vector(llm):
    return MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=1)


def test_options_reach_the_engine_and_others_are_those_of_llama(tiny_bundle):
    from tinylora_edge import runtime

    ours, plain = runtime.load(tiny_bundle), llama_cpp.Llama(str(tiny_bundle / "base.gguf"), verbose=False)
    left, right = ours.__getstate__(), plain.__getstate__()
    assert {key: left[key] for key in right} == right
    options = {"n_ctx": 512, "n_batch": 128, "chat_format": "chatml", "type_k": llama_cpp.GGML_TYPE_F32}
    llm = runtime.load(tiny_bundle, **options)
    assert (llm.n_ctx(), llm.n_batch, llm.chat_format) == (512, 128, "chatml")
    assert llm.context_params.type_k == llama_cpp.GGML_TYPE_F32
    with pytest.raises(TinyLoraError, match=r"cannot open .*base\.gguf with these options"):
        runtime.load(tiny_bundle, type_v=llama_cpp.GGML_TYPE_Q4_0, flash_attn=False)


@pytest.mark.parametrize("pooling", ["NONE", "LAST"])
def test_embeddings(load, load_plain, tiny_bundle, vector, pooling):
    options = {"embedding": True, "pooling_type": getattr(llama_cpp, f"LLAMA_POOLING_TYPE_{pooling}")}

    def embed(llm):
        return np.array(llm.embed("one two")), np.array(llm.create_embedding("x")["data"][0]["embedding"])

    def equal(left, right):
        return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))

    expected, llm = embed(load_plain(tiny_bundle, **options)), load(tiny_bundle, **options)
    assert equal(embed(llm), expected)
    llm.swap(vector)
    changed = embed(llm)
    assert not np.allclose(changed[0], expected[0], rtol=0.01)
    assert equal(changed, embed(load(tiny_bundle, vector, **options)))
    llm.clear()
    assert equal(embed(llm), expected)


# Saved states


def test_a_saved_state_comes_back_under_its_own_vector(llm, vector):
    llm.swap(vector)
    llm.eval(PROMPT)
    state = llm.save_state()
    expected = models.llama_greedy(llm, PROMPT, 8)
    llm.clear()
    models.llama_greedy(llm, list(b"something else"), 8)
    llm.swap(MicroVector(vector.values))  # another object, the same vector
    llm.load_state(state)
    assert llm.n_tokens == len(PROMPT)
    assert models.llama_greedy(llm, PROMPT, 8) == expected


def test_a_state_of_another_vector_is_refused(llm, vector):
    llm.swap(MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=2))
    llm.eval(PROMPT)
    state = llm.save_state()
    for active in (vector, None):
        llm.clear() if active is None else llm.swap(active)
        llm.eval(list(b"xyz"))
        before = llm.scores[: llm.n_tokens].copy()
        with pytest.raises(VectorError):
            llm.load_state(state)
        assert (llm.n_tokens, llm.vector) == (3, active)
        assert np.array_equal(llm.scores[:3], before)
