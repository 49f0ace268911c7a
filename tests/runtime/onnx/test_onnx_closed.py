"""A closed model of ONNX Runtime, and what each part says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TinyLoraError, load_bundle, runtime
from tinylora_edge.runtime import OnnxSession
from tinylora_edge.tasks import Sample

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def vector(bundle: Path) -> MicroVector:
    return onnx_bundles.vectors(bundle, 1)[0]


def test_a_closed_model_says_so(bundle: Path, vector: MicroVector) -> None:
    with runtime.load(bundle, **OPTIONS) as llm:
        llm("x", max_tokens=1)
    for use in (lambda: llm("x"), lambda: llm.swap(vector), lambda: llm.tokenize("x")):
        with pytest.raises(TinyLoraError, match="closed"):
            use()
    llm.close()


def test_a_model_is_closed_under_an_unfinished_stream(bundle: Path, vector: MicroVector) -> None:
    with runtime.load(bundle, vector, **OPTIONS) as llm:
        streams = [
            llm.generate([72], max_tokens=9),
            llm.create_completion("Hello", max_tokens=9, stream=True),
        ]
        for stream in streams[:1]:
            next(stream)
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
        lambda: llm.create_completion("x", stream=True),
        lambda: llm.create_chat_completion([{"role": "user", "content": "x"}]),
        lambda: llm.detokenize([72]),
        lambda: llm.apply_chat_template([]),
        lambda: llm.batch([Sample("x")], 1),
    ):
        with pytest.raises(TinyLoraError, match="the model is closed"):
            use()


def test_what_a_model_says_of_itself(bundle: Path, vector: MicroVector) -> None:
    name, path = load_bundle(bundle).bases.id, str(bundle / "onnx" / "model.onnx")
    with runtime.load(bundle, **OPTIONS) as llm:
        assert repr(llm) == f"TinyLoraOnnx({path!r}, n_ctx 64, factors {name}, None)"
    assert repr(llm) == f"TinyLoraOnnx({path!r}, closed, factors {name}, None)"
    session = OnnxSession(bundle)
    assert repr(session) == f"OnnxSession({path!r}, factors {name}, default)"
    assert repr(session.rows([vector, None])) == f"Rows(2 rows, factors {name})"
