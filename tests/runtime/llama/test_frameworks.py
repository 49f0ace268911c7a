"""What takes a `llama_cpp.Llama` takes ours: LangChain and instructor, the real packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tinylora_edge import MicroVector, runtime

pytestmark = pytest.mark.slow


@pytest.fixture
def llm(smollm2_bundle: Path) -> Any:
    with runtime.load(smollm2_bundle, n_ctx=512, n_threads=1) as opened:
        opened.swap(MicroVector.random(opened.bases.basis(rank=2), 0.3, seed=1))
        yield opened


def test_langchain(llm: Any) -> None:
    from langchain_community.llms.llamacpp import LlamaCpp

    chain = LlamaCpp.model_construct(
        client=llm, model_path=llm.model_path, max_tokens=8, temperature=0.0, streaming=False
    )
    expected = llm.create_completion("The sea is", max_tokens=8, temperature=0.0)["choices"][0]["text"]
    assert chain.invoke("The sea is") == expected != ""
    assert "".join(chain.stream("The sea is")) == expected


def test_instructor(llm: Any) -> None:
    import instructor

    class Verdict(BaseModel):
        likes_it: bool

    def held(*args: Any, **options: Any) -> Any:  # llama-cpp-python's own way to a schema
        options["response_format"] = {"type": "json_object", "schema": Verdict.model_json_schema()}
        return llm.create_chat_completion_openai_v1(*args, **options)

    create = instructor.patch(create=held, mode=instructor.Mode.JSON)
    messages = [{"role": "user", "content": '{"likes_it": true}'}]
    found = create(messages=messages, response_model=Verdict, max_tokens=96, temperature=0.0)
    assert isinstance(found, Verdict)
