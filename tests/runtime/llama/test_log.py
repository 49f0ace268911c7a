"""The log of llama.cpp: where nobody asked for it, nothing of it reaches the terminal."""

from __future__ import annotations

import subprocess
import sys

import models
import pytest

from tinylora_edge.exporters import export_gguf

SCRIPT = """
import sys
from tinylora_edge import runtime
from tinylora_edge.runtime.batch import Batch

with runtime.load({bundle!r}, n_ctx=64, n_threads=1, verbose={verbose}) as llm:
    with Batch(llm, n_ctx_seq=40, sequences=4, n_threads=1) as batch:
        batch.generate([[1, 2, 3]], max_tokens=2)
"""


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    root = tmp_path_factory.mktemp("windowed")
    base = models.write_gguf(models.tiny_model("gemma3"), root / "gemma3.gguf")
    return export_gguf(base, root / "bundle").output


@pytest.mark.parametrize("verbose", [False, True])
def test_a_sliding_window_is_loaded_and_batched_in_silence(windowed, verbose):
    script = SCRIPT.format(bundle=str(windowed), verbose=verbose)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ("full-size SWA cache" in done.stderr) is verbose
    assert verbose or done.stderr == ""
