"""Rows of a llama.cpp engine: each has its R and its tokens, wherever its sequence lies."""

from __future__ import annotations

import ctypes
import random
import threading
import time

import converter
import gguf
import llama_cpp
import models
import noise
import numpy as np
import pytest
import support

from tinylora_edge import MicroVector, TinyLoraError
from tinylora_edge.runtime.engine import Part
from tinylora_edge.runtime.llama import adapters, columns

F32 = dict.fromkeys(("type_k", "type_v"), llama_cpp.GGML_TYPE_F32)


@pytest.fixture(params=["operations", "stops", "python"], autouse=True)
def callback(request, monkeypatch):
    """How R comes into a graph: by operations of columns.c, or at stops, by columns.c or Python."""
    if request.param == "python":
        monkeypatch.setattr(columns, "_native", lambda: None)
    elif columns._native() is None:
        pytest.skip("columns.c is not built")
    if request.param == "operations":
        assert columns.has_operations()
    else:
        for module in (adapters, columns):
            monkeypatch.setattr(module, "has_operations", lambda: False)
    return request.param


@pytest.fixture
def llm(load, tiny_bundle):
    return load(tiny_bundle, **F32)


def vectors(llm):
    return [None, *(MicroVector.random(basis, 3.0, seed=1) for basis in support.each_size(llm.bases))]


def alone(llm, tokens, vector):
    llm.clear() if vector is None else llm.swap(vector)
    return models.llama_logits(llm, tokens)[-1]


def bound(llm, vector):
    return noise.of(llm, [*range(65, 91)], [vector])


def test_a_wrong_vector_is_out_of_bounds(llm):
    """R of twice, of a thousandth more, and without one module."""
    tokens, vector = [65, 66, 67], MicroVector.random(llm.bases.basis(rank=8), 3.0, seed=1)
    expected, r = alone(llm, tokens, vector), llm.own(vector).r
    engine = llm.engine(rows=1, n_ctx=64, n_threads=1)
    without = [np.where(np.arange(len(r))[:, None, None] == module, 0, r) for module in range(len(r))]
    for wrong in (2 * r, 1.001 * r, *without):
        engine.cut(0, 0)
        engine.set_r(0, np.float32(wrong))
        assert np.abs(engine.evaluate([Part(0, tokens)])[0] - expected).max() > 10 * bound(llm, vector)


def test_rows_that_come_go_grow_and_are_copied_in_any_order(llm):
    chance, choices = random.Random(1), vectors(llm)
    bounds = [bound(llm, vector) for vector in choices]
    engine = llm.engine(rows=6, n_ctx=128, n_threads=1)
    held, of = [[] for _ in range(6)], [choices[0]] * 6
    for _ in range(40):
        for row in chance.sample(range(6), 2):
            begun = chance.random() < 0.3
            if begun:
                assert engine.cut(row, 0) == 0
                held[row], of[row] = [], chance.choice(choices)
                engine.set_r(row, None if of[row] is None else llm.own(of[row]).r)
            elif held[row] and chance.random() < 0.3:
                other = chance.choice([each for each in range(6) if each != row])
                length = chance.randint(1, len(held[row]))
                engine.copy(row, other, length)
                held[other], of[other] = held[row][:length], of[row]
                engine.set_r(other, None if of[other] is None else llm.own(of[other]).r)
        parts = []
        for row in chance.sample(range(6), chance.randint(1, 6)):
            count = chance.choice([1, 1, 1, 2, 3, 5])
            parts.append(Part(row, [chance.randrange(256) for _ in range(count)], chance.randint(0, count)))
            held[row] = [*held[row], *parts[-1].tokens]
        logits, at = engine.evaluate(parts).copy(), 0
        for row, _, wanted in parts:
            assert engine.length(row) == len(held[row])
            if wanted:
                at += wanted
                apart = np.abs(logits[at - 1] - alone(llm, held[row], of[row])).max()
                assert apart < bounds[choices.index(of[row])]
        assert at == len(logits)
        for row in range(6):
            if len(held[row]) > 100:
                held[row] = held[row][: engine.cut(row, 5)]
    assert engine.evaluated > 40


def test_two_threads_that_make_the_first_engines(llm):
    """The second one finds modules of the first one, which is still looking for others."""
    first_module = threading.Event()

    class Slow(dict):
        def __setitem__(self, address, number):
            super().__setitem__(address, number)
            first_module.set()
            time.sleep(0.02)

    engines, vector = [], vectors(llm)[-1]
    llm.adapters.modules = Slow()
    threads = [
        threading.Thread(target=lambda: engines.append(llm.engine(rows=1, n_ctx=64, n_threads=1)))
        for _ in range(2)
    ]
    threads[0].start()
    assert first_module.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(llm.adapters.modules) == len(llm.bases.factors.modules)
    for engine in engines:
        for choice in (None, vector):
            engine.set_r(0, None if choice is None else llm.own(choice).r)
            found = engine.evaluate([Part(0, [65, 66])])[0]
            assert np.abs(found - alone(llm, [65, 66], choice)).max() < bound(llm, choice)
            engine.cut(0, 0)
    assert len(engines) == 2


def test_a_prompt_longer_than_an_evaluation(load, tiny_bundle):
    llm = load(tiny_bundle, n_ctx=512, **F32)
    vector, tokens = vectors(llm)[-1], [i % 250 for i in range(500)]
    engine = llm.engine(rows=2, n_ctx=600, n_threads=1)
    engine.set_r(1, llm.own(vector).r)
    engine._size = 64
    logits = engine.evaluate([Part(1, tokens, 2), Part(0, [1])])
    assert np.abs(logits[1] - alone(llm, tokens, vector)).max() < bound(llm, vector)


def test_the_callers_lora_is_in_force_for_every_row(load, tiny_bundle, tmp_path):
    """Of a module that has factors: its A has the name of ours."""
    rng, lora = np.random.default_rng(5), tmp_path / "lora.gguf"
    writer = gguf.GGUFWriter(lora, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    for part, shape in (("a", (8, 64)), ("b", (64, 8))):
        writer.add_tensor(f"blk.1.attn_q.weight.lora_{part}", np.float32(rng.normal(size=shape) / 4))
    converter.finish(writer, lora)
    llm = load(tiny_bundle, lora_path=str(lora), **F32)
    tokens, choices = [65, 66, 67], vectors(llm)
    expected = [alone(llm, tokens, vector) for vector in choices]
    bounds = [bound(llm, vector) for vector in choices]
    assert np.abs(alone(load(tiny_bundle, **F32), tokens, None) - expected[0]).max() > 10 * bounds[0]
    engine = llm.engine(rows=len(choices), n_ctx=64, n_threads=1)
    for row, vector in enumerate(choices):
        engine.set_r(row, None if vector is None else llm.own(vector).r)
    engine.evaluate([Part(row, tokens[:2]) for row in range(len(choices))])
    found = engine.evaluate([Part(r, tokens[2:]) for r in range(len(choices))])
    assert (np.abs(found - expected).max(1) < bounds).all()


def test_the_base_is_the_base_to_the_bit_beside_others(llm, tiny_bundle, load_plain):
    tokens = [65, 66, 67]
    plain = models.llama_logits(load_plain(tiny_bundle, **F32), tokens)
    engine = llm.engine(rows=1, n_ctx=64, n_threads=1)
    assert np.array_equal(engine.evaluate([Part(0, tokens, 3)]), plain)
    engine.set_r(0, llm.own(vectors(llm)[-1]).r)
    engine.evaluate([Part(0, tokens)])
    engine.cut(0, 0)
    engine.set_r(0, None)
    assert np.array_equal(engine.evaluate([Part(0, tokens, 3)]), plain)


def test_tensors_of_another_ggml_are_refused_before_any_is_read(llm, monkeypatch):
    class Longer(columns._Tensor):
        _fields_ = (("more", columns.ctypes.c_char * 256),)

    columns._ggml.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(columns, "_Tensor", Longer)
        with pytest.raises(TinyLoraError, match="laid out in another way"):
            llm.engine(rows=1, n_ctx=64, n_threads=1)
    llm.engine(rows=1, n_ctx=64, n_threads=1)


def test_tensors_that_are_not_in_the_hosts_memory_are_copied(llm, monkeypatch, callback):
    """As on a GPU: a buffer says that it is not host."""
    if callback == "operations":
        pytest.skip("on a processor nothing is copied")
    tokens, choices = [65, 66, 67], vectors(llm)

    def logits():
        engine = llm.engine(rows=len(choices), n_ctx=64, n_threads=1)
        for row, vector in enumerate(choices):
            engine.set_r(row, None if vector is None else llm.own(vector).r)
        return engine.evaluate([Part(row, tokens, 1) for row in range(len(choices))]).copy()

    expected, asked = logits(), 0

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
    def is_host(buffer):
        nonlocal asked
        asked += 1
        return False

    monkeypatch.setattr(columns._ggml(), "ggml_backend_buffer_is_host", is_host)
    assert np.array_equal(logits(), expected)
    assert asked


def test_any_number_of_threads_gives_the_same_bits(llm):
    choices, tokens = vectors(llm), [*range(65, 91)]

    def logits(threads):
        engine = llm.engine(rows=len(choices), n_ctx=64, n_threads=threads)
        for row, vector in enumerate(choices):
            engine.set_r(row, None if vector is None else llm.own(vector).r)
        return engine.evaluate([Part(row, tokens, 2) for row in range(len(choices))]).copy()

    expected = logits(1)
    for threads in (2, 3, 5):
        assert np.array_equal(logits(threads), expected)


def test_a_product_that_stays_llama_cpps_is_refused(llm, callback):
    """A x is ours, and nothing asks for B (A x), which would read B^T as B."""
    if callback != "operations":
        pytest.skip("there B is B")
    engine, ggml = llm.engine(rows=1, n_ctx=64, n_threads=1), columns._ggml()
    a = engine._columns._table.modules[0].a
    memory = ggml.ggml_init(columns._Memory(1 << 20, None, False))
    x = ggml.ggml_new_tensor_2d(memory, 0, columns._Tensor.from_address(a).ne[0], 1)
    y = ggml.ggml_mul_mat(memory, a, x)
    with (
        pytest.raises(TinyLoraError, match="in another way than is known"),
        engine._columns.of([None], {1}),
    ):
        assert not columns._native()(ctypes.c_void_p(y), True, ctypes.c_void_p(engine._columns.data))
    ggml.ggml_free(memory)
    assert engine.evaluate([Part(0, [65])]).any()


def test_what_llama_cpp_evaluates_in_another_way_is_refused(llm):
    engine = llm.engine(rows=1, n_ctx=64, n_threads=1)
    engine.set_r(0, llm.own(vectors(llm)[-1]).r)
    of = engine._columns.of
    engine._columns.of = lambda rows, counts: of(rows, {7})
    with pytest.raises(TinyLoraError, match=r"evaluates blk.0.attn_q.weight in another way than is known"):
        engine.evaluate([Part(0, [65, 66, 67], 1)])
    engine._columns.of = of
    engine.evaluate([Part(0, [65, 66, 67], 1)])
