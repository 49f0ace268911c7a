"""It is a `llama_cpp.Llama`: its users pass and call what they know, and what takes one takes ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import models
import numpy as np
import pytest
from pydantic import BaseModel

from tinylora_edge import MicroVector, TinyLoraError, VectorError, exporters, runtime
from tinylora_edge.runtime.engine import Part

PROMPT = list(b"one two three four")


@pytest.fixture
def llm(load, tiny_bundle):
    return load(tiny_bundle)


def test_options_reach_the_engine_and_others_are_those_of_llama(tiny_bundle):
    ours, plain = runtime.load(tiny_bundle), llama_cpp.Llama(str(tiny_bundle / "base.gguf"), verbose=False)
    left, right = ours.__getstate__(), plain.__getstate__()
    assert {key: left[key] for key in right} == right
    options = {"n_ctx": 512, "n_batch": 128, "chat_format": "chatml", "type_k": llama_cpp.GGML_TYPE_F32}
    llm = runtime.load(tiny_bundle, **options)
    assert (llm.n_ctx(), llm.n_batch, llm.chat_format) == (512, 128, "chatml")
    assert llm.context_params.type_k == llama_cpp.GGML_TYPE_F32
    with pytest.raises(TinyLoraError, match=r"cannot open .*base\.gguf with n_ctx 512: Failed"):
        runtime.load(tiny_bundle, type_v=llama_cpp.GGML_TYPE_Q4_0, flash_attn=False)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_type": llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL},
        {"embedding": True, "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_LAST},
    ],
)
def test_a_batch_computes_as_the_models_own_context(load, tiny_bundle, options):
    llm = load(tiny_bundle, **options)
    llm.eval(PROMPT)
    (found,) = llm.engine(rows=2, n_ctx=256, n_threads=1).evaluate([Part(1, PROMPT)])
    assert np.allclose(found, llm.scores[len(PROMPT) - 1], atol=1e-4)


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


def test_a_saved_state_comes_back_under_its_own_vector(llm, vector):
    llm.swap(vector)
    llm.eval(PROMPT)
    llm.swap(MicroVector(vector.values, sequence=2))  # the same R, and so the same state
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


@pytest.fixture
def real(smollm2_bundle: Path) -> Any:
    with runtime.load(smollm2_bundle, n_ctx=512, n_threads=1) as opened:
        opened.swap(MicroVector.random(opened.bases.basis(rank=2), 0.3, seed=1))
        yield opened


@pytest.mark.slow
def test_instructor(real: Any) -> None:
    import instructor

    class Verdict(BaseModel):
        likes_it: bool

    def held(*args: Any, **options: Any) -> Any:  # llama-cpp-python's own way to a schema
        options["response_format"] = {"type": "json_object", "schema": Verdict.model_json_schema()}
        return real.create_chat_completion_openai_v1(*args, **options)

    create = instructor.patch(create=held, mode=instructor.Mode.JSON)
    messages = [{"role": "user", "content": '{"likes_it": true}'}]
    found = create(messages=messages, response_model=Verdict, max_tokens=96, temperature=0.0)
    assert isinstance(found, Verdict)


def test_a_row_that_left_its_window_begins_anew(tmp_path, load):
    """With swa_full=False llama.cpp keeps a window of it, and says nothing of what is gone."""
    base = models.write_gguf(models.tiny_model("gemma3"), tmp_path / "base.gguf")
    with load(exporters.export_gguf(base, tmp_path / "bundle").output, swa_full=False) as llm:
        engine = llm.engine(rows=1, n_ctx=2048, n_threads=1)
        for part in 7 * [Part(0, 256 * [7], 0)]:
            engine.evaluate([part])
        assert [engine.cut(0, length) for length in (1792, 400)] == [1792, 0]
