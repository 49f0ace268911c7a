"""Prompts as token ids: chat is the default, everywhere the same; raw is the exception."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from tinylora_edge import TinyLoraError, TrainError, VectorError, runtime
from tinylora_edge.exporters import export_gguf
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.tasks import Sample

QUESTION = "Name a colour."
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def smollm2(smollm2_bundle):
    with runtime.load(smollm2_bundle, engine="llama", n_ctx=256, n_threads=1) as llm:
        yield llm


def encode(llm: TinyLoraLlama, prompt: Any, **options: Any) -> list[int]:
    return llm.encode(prompt, **options)[0]


def test_text_is_a_message_of_the_user(smollm2):
    assert smollm2.chat_tokenizer.has_template
    chat = encode(smollm2, MESSAGES)
    assert encode(smollm2, QUESTION) == chat
    assert encode(smollm2, Sample(QUESTION)) == chat
    raw = smollm2.tokenize(QUESTION.encode(), special=True)
    assert encode(smollm2, QUESTION, raw=True) == raw != chat
    assert encode(smollm2, Sample(QUESTION, raw=True)) == raw


def test_long_tokens_have_their_text(smollm2):
    """SmolLM2 has tokens of up to 64 spaces, dashes and the like."""
    line = b"-" * 64
    (token,) = smollm2.tokenize(line, add_bos=False)
    assert smollm2.detokenize([token]) == smollm2.chat_tokenizer.data(token) == line


def test_a_model_without_a_template_continues_text(tiny_bundle, load):
    with load(tiny_bundle) as llm:
        assert not llm.chat_tokenizer.has_template
        assert encode(llm, "one two") == llm.tokenize(b"one two", special=True)


def test_a_chat_format_that_is_none(tiny_bundle, load):
    with load(tiny_bundle, chat_format="none") as llm:
        for render in (lambda: encode(llm, MESSAGES), lambda: llm.create_chat_completion(MESSAGES)):
            with pytest.raises(VectorError, match="Invalid chat handler: none"):
                render()


def test_messages_cannot_be_raw(smollm2):
    with pytest.raises(TrainError, match="a raw prompt is text"):
        encode(smollm2, MESSAGES, raw=True)


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ m.content }}\n{% endfor %}"
)


def test_messages_that_the_template_refuses(tiny_bundle: Path, load: Callable[..., TinyLoraLlama]) -> None:
    handler = Jinja2ChatFormatter(REFUSING, eos_token="", bos_token="").to_chat_handler()
    refused: list[tuple[Any, str]] = [
        ([{"role": "system", "content": "x"}, *MESSAGES], "ValueError: System role not supported"),
        ([{"role": "user", "content": 3}, {"role": "system"}], "ValueError: System role"),
        ([7], "TypeError"),
    ]
    with load(tiny_bundle, chat_handler=handler) as llm:
        for messages, why in refused[:2]:
            with pytest.raises(VectorError, match=f"does not render these messages: {why}"):
                encode(llm, messages)
        for messages, why in refused:
            for stream in (False, True):
                with pytest.raises(VectorError, match=f"does not render these messages: {why}"):
                    llm.create_chat_completion(messages, max_tokens=1, stream=stream)
        long: Any = [{"role": "user", "content": "x" * 300}]
        with pytest.raises(ValueError, match="exceed context window"):  # is no template's fault
            llm.create_chat_completion(long, max_tokens=1)
        with pytest.raises(UnicodeEncodeError):
            encode(llm, [{"role": "user", "content": "\udcff"}])


def test_an_answer_ends_as_the_template_says(tmp_path, load, smollm2):
    metadata: dict[str, str | int] = {"tokenizer.ggml.eot_token_id": 258}
    gguf = models.write_gguf(models.tiny_model("llama"), tmp_path / "tiny.gguf", metadata=metadata)
    bundle = export_gguf(gguf, tmp_path / "bundle").output
    for end, expected in (("<pad>", 258), ("<eos>", 257), ("<bos>", 257), ("", 257)):
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "\n{% endfor %}a:"
        handler = Jinja2ChatFormatter(template, eos_token="", bos_token="").to_chat_handler()
        with load(bundle, chat_handler=handler) as llm:
            assert llm.turn_end == expected
    assert smollm2.turn_end == smollm2.tokenize(b"<|im_end|>", special=True)[0]


@pytest.mark.parametrize("text", ["{% if", "{{ messages | no_such_filter }}"])
def test_a_template_that_cannot_be_read(tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    model = models.tiny_model("llama")
    base = models.write_gguf(model, tmp_path / "m.gguf", metadata={"tokenizer.chat_template": text})
    shutil.copy(tiny_bundle / "basis.gguf", tmp_path / "m.basis.gguf")
    with pytest.raises(TinyLoraError, match="the model's chat template cannot be read"):
        runtime.load(base, n_ctx=64, n_threads=1)
