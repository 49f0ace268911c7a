"""Memory, files and the order in which things are freed."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import support

from tinylora_edge import BaseMismatchError, Bases, MicroVector, load_bundle
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.engine import Part
from tinylora_edge.runtime.llama import adapters

PROMPT = list(b"one two three four")


class Mallinfo(ctypes.Structure):  # glibc's mallinfo2: of ten sizes 4 and 7 are bytes in use
    _fields_ = (("sizes", ctypes.c_size_t * 10),)


@pytest.mark.skipif(not hasattr(adapters._libc, "mallinfo2"), reason="glibc alone counts its bytes")
def test_swaps_take_no_memory(smollm2_bundle, load):
    # What is allocated, since what is resident moves by an adapter or two, of 2 to 10 MB.
    adapters._libc.mallinfo2.restype = Mallinfo
    llm = load(smollm2_bundle, logits_all=False)

    def grown(basis):
        """Bytes that 400 swaps leave allocated, after 100 that warm up."""
        choices, in_use = [MicroVector.random(basis, 0.3, seed=seed) for seed in range(4)], []
        for i in range(501):
            if i % 100 == 0:
                llm.create_completion("one two", max_tokens=2, temperature=0.0)
                gc.collect()
                in_use.append(sum(adapters._libc.mallinfo2().sizes[4:8:3]))
            if i % 50 == 0:
                llm.clear()
            llm.swap(choices[i % len(choices)])
        return in_use[-1] - in_use[1]

    assert grown(llm.bases.basis(numbers=13)) < 200_000
    assert grown(llm.bases.basis(rank=8)) < 200_000


def test_a_model_keeps_the_adapter_in_force_and_one_for_all_engines(tiny_bundle, load, monkeypatch):
    loaded, freed = [], []
    load_image, free = adapters._from_memory, adapters._free
    monkeypatch.setattr(adapters, "_from_memory", lambda *a: loaded.append(load_image(*a)) or loaded[-1])
    monkeypatch.setattr(adapters, "_free", lambda adapter: freed.append(adapter) or free(adapter))
    with load(tiny_bundle) as llm:
        small, large = (np.full((14, k, k), 0.1, np.float32) for k in (2, 8))
        for r in (small, small.copy(), None, small, large):
            llm.adapters.apply(llm._ctx.ctx, r)
        assert [len(loaded), len(freed)] == [3, 2]
        engines = [llm.engine(rows=2, n_ctx=64, n_threads=1) for _ in range(2)]
        for engine in engines:
            for row, r in enumerate((small, large)):
                engine.set_r(row, r)
            engine.evaluate([Part(0, [1, 2]), Part(1, [3])])
        assert [len(loaded), len(freed)] == [4, 2], "rows and engines share one"
    assert len(freed) == 4


# Factors that do not fit the loaded model: only a caller of TinyLoraLlama itself can get there, since
# `load` compares fingerprints.


def test_a_model_that_the_factors_do_not_fit_is_refused(tiny_bundle, capfd):
    factors = load_bundle(tiny_bundle).bases.factors
    a = *factors.a[:-1], np.zeros((factors.rank, factors.a[-1].shape[1] + 32), np.float32)
    modules = *factors.modules[:-1], "blk.7.ffn_down.weight"
    for change in ({"a": a}, {"modules": modules}, {"architecture": "qwen2"}):
        bases = Bases(replace(factors, **change))
        with pytest.raises(BaseMismatchError):
            TinyLoraLlama(str(tiny_bundle / "base.gguf"), bases=bases, n_ctx=128, verbose=False)
    capfd.readouterr()  # llama.cpp says why, on stderr


@pytest.mark.parametrize("alone", [1, 40, 120, 1 << 18])  # rows at once: 1, 1, 3, all 12
@pytest.mark.parametrize("experts", [0, 3])
def test_products_of_a_few_rows_are_the_whole_one(alone, experts, monkeypatch):
    monkeypatch.setattr(adapters, "_ALONE", alone)
    factors = support.random_factors(rank=8, outputs=10, experts=experts, n_out=12)
    r = np.random.default_rng(0).standard_normal((len(factors.modules), 5, 8)).astype(np.float32)
    images = adapters._Images(factors)
    images.of(np.ones((len(factors.modules), 10, 8), np.float32))  # B is wider than R wants it afterwards
    images.of(r)
    _, folded = images._made[8]
    for found, target in zip(images._alike, folded, strict=True):
        for position, each in zip(found, target, strict=True):
            expected = np.asarray(factors.b[position], np.float64)[..., :5] @ r[position]
            np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)


def test_one_b_serves_all_numbers_of_outputs_and_few_of_them_lie_together():
    factors = support.random_factors(rank=8, outputs=10, n_out=12)
    images = adapters._Images(factors)
    for outputs, most in ((2, 2), (10, 10), (4, 10)):
        images.of(np.ones((len(factors.modules), outputs, 2), np.float32))
        assert {b.shape[-2] for b in images._b} == {most}
    assert images._b[0][0, :4].flags.c_contiguous


def test_a_temporary_file_serves_where_there_is_no_fmemopen(tiny_bundle, load, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "_HAS_FMEMOPEN", False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = []
    init = adapters.llama_cpp.llama_adapter_lora_init

    def spy(model, path):
        opened.append((Path(path.decode()), os.stat(path).st_mode & 0o777))
        return init(model, path)

    monkeypatch.setattr(adapters.llama_cpp, "llama_adapter_lora_init", spy)
    by_file = load(tiny_bundle)
    vector = MicroVector.random(by_file.bases.basis(numbers=13), 0.5)
    by_file.swap(vector)
    logits = models.llama_logits(by_file, PROMPT)
    assert {(path.parent, mode) for path, mode in opened} == {(tmp_path, 0o600)}
    assert list(tmp_path.iterdir()) == []

    monkeypatch.undo()
    assert np.array_equal(models.llama_logits(load(tiny_bundle, vector), PROMPT), logits)


# The end of a process, in one of its own. glibc fills what is freed, so that use after it shows.

SCRIPT = """
import sys
from tinylora_edge import MicroVector, runtime
llm = runtime.load(sys.argv[1], n_ctx=64, n_threads=1, n_threads_batch=1)
llm.swap(MicroVector.random(llm.bases.basis(numbers=13), 0.5))
llm("one", max_tokens=3)
{ending}
print("done")
"""

ENDINGS = {
    "not closed": "",
    "in a cycle": "llm.itself = llm; llm.stream = llm('one', stream=True); next(llm.stream); del llm",
    "in a block": "block = llm.using(MicroVector.zeros(llm.bases.basis(numbers=13))); block.__enter__()",
    "with a thread inside a step": """
import threading
from llama_cpp import LogitsProcessorList
running = threading.Event()
def pause(tokens, logits):
    running.set()
    threading.Event().wait()
def generate():
    llm("abc", max_tokens=2, logits_processor=LogitsProcessorList([pause]))
threading.Thread(target=generate, daemon=True).start()
assert running.wait(20)
""",
    "beside torch": "import torch",  # it keeps modules alive past the point where their names are cleared
    "two models": "other = runtime.load(sys.argv[1], n_ctx=64); llm.close(); other('one', max_tokens=2)",
    "in the midst of a stream": "stream = llm('one', max_tokens=9, stream=True); next(stream)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_cleanly(tiny_bundle, ending):
    script = SCRIPT.format(ending=ENDINGS[ending])
    command = [sys.executable, "-X", "faulthandler", "-c", script, str(tiny_bundle)]
    watched = {**os.environ, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=watched)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
