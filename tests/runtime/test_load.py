"""`runtime.load`: what it takes, and what it refuses before the engine starts."""

from __future__ import annotations

import logging
import shutil
import signal
from dataclasses import replace

import models
import numpy as np
import onnx_bundles
import pytest
from bad_vectors import bad_vectors
from llama_cpp import _logger

from tinylora_edge import BaseMismatchError, Bases, load_bundle, runtime
from tinylora_edge.formats.side_tensors import save_bases

PROMPT = list(b"one two three four")


def test_a_bundle_its_base_or_a_gguf_with_its_basis(tiny_bundle, load, tmp_path, vector, monkeypatch):
    expected = models.llama_logits(load(tiny_bundle, vector), PROMPT)
    named = tmp_path / "model.Q4_1.gguf"
    shutil.copy(tiny_bundle / "base.gguf", named)
    shutil.copy(tiny_bundle / "basis.gguf", tmp_path / "model.Q4_1.basis.gguf")
    monkeypatch.chdir(tiny_bundle.parent)
    for base in (str(tiny_bundle), tiny_bundle / "base.gguf", named, tiny_bundle.name):
        llm = load(base, vector)
        assert llm.vector == vector
        assert np.array_equal(models.llama_logits(llm, PROMPT), expected)


def test_silent_unless_verbose_is_given(tiny_bundle, vector, capfd):
    runtime.load(tiny_bundle, vector, n_ctx=64)("x", max_tokens=1)
    assert capfd.readouterr() == ("", "")
    llm = runtime.load(tiny_bundle, vector, n_ctx=64, verbose=True)
    assert "llama_context" in capfd.readouterr().err
    assert llm.verbose
    runtime.load(tiny_bundle, n_ctx=64)  # llama-cpp-python's logger is one for all models


def test_bad_vectors_are_refused_before_an_engine_starts(tiny_bundle, engine_starts):
    for bundle in (tiny_bundle, onnx_bundles.tiny()):
        for error, data in bad_vectors(load_bundle(bundle).basis(numbers=13)):
            with pytest.raises(error):
                runtime.load(bundle, data)
    assert engine_starts == []


@pytest.mark.parametrize("change", ["experts", "fewer inputs", "more outputs"])
def test_factors_of_another_shape_than_the_base(tiny_bundle, tmp_path, basis, change, engine_starts):
    a, b = list(basis.factors.a), list(basis.factors.b)
    if change == "experts":
        a[3], b[3] = a[3][None], b[3][None]
    elif change == "fewer inputs":
        a[3] = a[3][:, :-1]
    else:
        b[3] = np.concatenate([b[3], b[3][:1]])
    listed = load_bundle(tiny_bundle).bases.fingerprints
    forged = Bases(replace(basis.factors, a=tuple(a), b=tuple(b)), (), listed)
    shutil.copy(tiny_bundle / "base.gguf", tmp_path / "x.gguf")
    save_bases(forged, tmp_path / "x.basis.gguf")
    with pytest.raises(BaseMismatchError):
        runtime.load(tmp_path / "x.gguf")
    assert engine_starts == []


def test_a_signal_while_llama_cpp_logs_is_not_lost(load, tiny_bundle, monkeypatch):
    class Log:
        calls = 0

        @property
        def level(self) -> int:
            self.calls += 1
            if self.calls == 1:
                signal.raise_signal(signal.SIGTERM)
            return logging.CRITICAL

        def setLevel(self, level: int) -> None:
            pass

    def handle(number: int, frame: object) -> None:
        raise EOFError

    log = Log()
    monkeypatch.setattr(_logger, "logger", log)
    before = signal.signal(signal.SIGTERM, handle)
    try:
        with pytest.raises(EOFError):
            load(tiny_bundle)
        assert log.calls > 1, "the load went on, and the handler was called at its end"
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)
