"""A closed model of ONNX Runtime, and what each part says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TinyLoraError, runtime
from tinylora_edge.tasks import Sample

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def vector(bundle: Path) -> MicroVector:
    return onnx_bundles.vectors(bundle, 1)[0]


def test_a_stream_of_a_closed_model_does_not_begin(bundle: Path, vector: MicroVector) -> None:
    with runtime.load(bundle, vector, **OPTIONS) as llm:
        streams = llm.generate([72], max_tokens=9), llm.create_completion("Hello", stream=True)
    for stream in streams:
        with pytest.raises(TinyLoraError, match="the model is closed"):
            next(stream)
    llm.close()


def test_every_call_of_a_closed_model_says_so(bundle: Path, vector: MicroVector) -> None:
    llm = runtime.load(bundle, **OPTIONS)
    llm.close()
    for use in (
        llm.clear,
        lambda: llm.swap(vector),
        lambda: llm.using(vector).__enter__(),
        lambda: list(llm.generate([72])),
        lambda: next(llm.create_completion("x", stream=True)),
        lambda: llm.create_chat_completion([{"role": "user", "content": "x"}]),
        lambda: llm.detokenize([72]),
        lambda: llm.apply_chat_template([]),
        lambda: llm.batch([Sample("x")], 1),
    ):
        with pytest.raises(TinyLoraError, match="the model is closed"):
            use()
