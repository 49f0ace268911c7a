"""A closed model, of either engine: whatever is called, an error in our words, and the process goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import onnx_bundles
import pytest

from tinylora_edge import TinyLoraError
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.engine import CLOSED
from tinylora_edge.runtime.llama.model import ContextThread, Job
from tinylora_edge.tasks import Sample

BOTH: dict[str, Callable[[Any], Any]] = {
    "completion": lambda llm: llm("one two", max_tokens=2),
    "chat": lambda llm: llm.create_chat_completion([{"role": "user", "content": "x"}]),
    "stream": lambda llm: next(llm("one two", max_tokens=2, stream=True)),
    "generate": lambda llm: next(llm.generate([1, 2])),
    "detokenize": lambda llm: llm.detokenize([1]),
    "swap": lambda llm: llm.swap(llm.kept),
    "clear": lambda llm: llm.clear(),
    "using": lambda llm: llm.using(llm.kept).__enter__(),
    "batch": lambda llm: Batch(llm, n_ctx_seq=8, n_threads=1),
    "batch of samples": lambda llm: llm.batch([Sample("x")], 1),
}
CALLS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "onnx": BOTH | {"template": lambda llm: llm.chat_tokenizer.render([])},
    "llama": BOTH
    | {
        "eval": lambda llm: llm.eval([1, 2]),
        "embed": lambda llm: llm.embed("one two"),
        "tokenize": lambda llm: llm.tokenize(b"one"),
        "ends": lambda llm: llm.chat_tokenizer.ends(1),
        "n_ctx": lambda llm: llm.n_ctx(),
        "n_vocab": lambda llm: llm.n_vocab(),
        "n_embd": lambda llm: llm.n_embd(),
        "token_eos": lambda llm: llm.token_eos(),
        "pooling_type": lambda llm: llm.pooling_type(),
        "ctx": lambda llm: llm.ctx,
        "model": lambda llm: llm.model,
        "save_state": lambda llm: llm.save_state(),
    },
}

SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_closed import CALLS
from tinylora_edge import MicroVector, TinyLoraError, runtime

llm = runtime.load({bundle!r}, engine={engine!r}, n_ctx=64, n_threads=1)
llm.kept, _ = MicroVector.zeros(llm.bases.basis(numbers=13)), llm.chat_tokenizer
stream = llm("one two", max_tokens=9, stream=True)
llm.close()
llm.close()
assert "closed" in repr(llm)
for name, call in {{**CALLS[{engine!r}], "a stream that is there": lambda llm: next(stream)}}.items():
    try:
        call(llm)
    except TinyLoraError as error:
        assert "the model is closed: load it again" in str(error), (name, error)
    else:
        raise AssertionError(name)
print("alive")
"""


@pytest.mark.parametrize("engine", CALLS)
def test_every_call_after_close_is_refused(smollm2_bundle: Path, engine: str) -> None:
    bundle = smollm2_bundle if engine == "llama" else onnx_bundles.tiny()
    script = SCRIPT.format(path=sys.path, bundle=str(bundle), engine=engine)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode, done.stderr) == ("alive\n", 0, "")


def test_a_call_that_a_close_meets_as_it_begins_gets_the_error() -> None:
    """The thread has taken it, and has not called it yet."""
    thread, ended = ContextThread(), SimpleQueue[tuple[Any, BaseException | None]]()
    job = Job(lambda: pytest.fail("it was called"), lambda *result: ended.put(result))
    job.cancelled = True  # as `close` does it
    thread.submit(job)
    result, error = ended.get(timeout=60)
    thread.close()
    assert result is None
    assert isinstance(error, TinyLoraError)
    assert str(error) == CLOSED
