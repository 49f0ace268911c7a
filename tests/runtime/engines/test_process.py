"""A process that is forked: the child is refused what needs the engine's threads, and none hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, sys, threading
from tinylora_edge import MicroVector, TinyLoraError, runtime
from tinylora_edge.runtime.batch import Batch

llm = runtime.load({bundle!r}, n_ctx=64, n_threads=1)
vector = MicroVector.zeros(llm.bases.basis(numbers=13))
batch = Batch(llm, n_ctx_seq=32, sequences=4, n_threads=1)
stream = llm("one two", max_tokens=9, stream=True)
next(stream)
"""

FORK = """
calls = {
    "step": lambda: next(stream),
    "completion": lambda: llm("one two", max_tokens=2),
    "swap": lambda: llm.swap(vector),
    "using": lambda: llm.using(vector).__enter__(),
    "eval": lambda: llm.eval([1, 2]),
    "batch": lambda: batch.generate([[1, 2]], max_tokens=2),
    "score": lambda: batch.score([[1, 2]], [[[3]]]),
    "another batch": lambda: Batch(llm, n_ctx_seq=32, sequences=4, n_threads=1),
}
child = os.fork()
if not child:
    for name, call in calls.items():
        try:
            call()
        except TinyLoraError as error:
            assert "forked" in str(error) and "load the model after the fork" in str(error), (name, error)
        else:
            raise AssertionError(name)
    batch.close()
    llm.close()  # nothing of the engine is touched
    print("refused", flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
stream.close()
for name in ("completion", "swap", "eval", "batch"):
    calls[name]()
print("alive")
"""


def run(bundle: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(bundle=str(bundle)) + script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_refuses_and_its_parent_goes_on(tiny_bundle: Path) -> None:
    assert run(tiny_bundle, FORK) == "refused\nalive\n"
