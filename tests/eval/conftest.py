"""A small model in llama.cpp, which everything here is measured on."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_bundles
import pytest

from tinylora_edge import runtime
from tinylora_edge.runtime import TinyLoraLlama


@pytest.fixture
def llm() -> Iterator[TinyLoraLlama]:
    with runtime.load(onnx_bundles.both(), engine="llama", n_ctx=64, n_threads=1) as llm:
        yield llm
