"""A closed model: whatever is called, an error in our words, and the process goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tinylora_edge import TinyLoraError
from tinylora_edge.runtime.batch import Batch

CALLS = {
    "completion": lambda llm: llm("one two", max_tokens=2),
    "stream": lambda llm: next(llm("one two", max_tokens=2, stream=True)),
    "generate": lambda llm: next(llm.generate([1, 2])),
    "eval": lambda llm: llm.eval([1, 2]),
    "embed": lambda llm: llm.embed("one two"),
    "tokenize": lambda llm: llm.tokenize(b"one"),
    "detokenize": lambda llm: llm.detokenize([1]),
    "n_ctx": lambda llm: llm.n_ctx(),
    "n_vocab": lambda llm: llm.n_vocab(),
    "n_embd": lambda llm: llm.n_embd(),
    "token_eos": lambda llm: llm.token_eos(),
    "pooling_type": lambda llm: llm.pooling_type(),
    "ctx": lambda llm: llm.ctx,
    "model": lambda llm: llm.model,
    "save_state": lambda llm: llm.save_state(),
    "swap": lambda llm: llm.swap(llm.kept),
    "clear": lambda llm: llm.clear(),
    "using": lambda llm: llm.using(llm.kept).__enter__(),
    "batch": lambda llm: Batch(llm, n_ctx_seq=8, n_threads=1),
}

SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_closed import CALLS
from tinylora_edge import MicroVector, TinyLoraError, runtime

llm = runtime.load({bundle!r}, n_ctx=64, n_threads=1, embedding=True)
llm.kept = MicroVector.zeros(llm.bases.basis(numbers=13))
llm.close()
llm.close()
assert "closed" in repr(llm)
for name, call in CALLS.items():
    try:
        call(llm)
    except TinyLoraError as error:
        assert "the model is closed: load it again" in str(error), (name, error)
    else:
        raise AssertionError(name)
print("alive")
"""


def test_every_call_after_close_is_refused(tiny_bundle):
    script = SCRIPT.format(path=sys.path, bundle=str(tiny_bundle))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_model_is_a_context_manager_that_ends_its_streams_and_batches(tiny_bundle, load):
    with load(tiny_bundle) as llm:
        batch = Batch(llm, n_ctx_seq=40, sequences=2, n_threads=1)
        chunks = llm("one two", max_tokens=200, stream=True)
        next(chunks)
    with pytest.raises(TinyLoraError, match="the model is closed"):
        list(chunks)
    with pytest.raises(TinyLoraError, match="is closed"):
        batch.generate([[1, 2]], max_tokens=2)
    batch.close()
