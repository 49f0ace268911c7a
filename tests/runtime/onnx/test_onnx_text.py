"""Completions of an ONNX model: the shape that llama-cpp-python gives them, and what they say."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest

from tinylora_edge import OptionError, TinyLoraError, VectorError, runtime
from tinylora_edge.runtime import TinyLoraOnnx
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.tasks import Sample

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello\nthere"}]


@pytest.fixture(scope="module")
def llm() -> TinyLoraOnnx:
    return runtime.load(onnx_bundles.tiny(), engine="onnx", n_ctx=96, n_threads=1)


def joined(chunks: Any) -> tuple[str, str]:
    text, reason = "", None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert reason is None, "nothing comes after the end"
        text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        reason = choice["finish_reason"]
    assert reason is not None
    return text, reason


def test_tokens_there_and_back(llm: TinyLoraOnnx) -> None:
    text = "Hello, Wörld"
    tokens = llm.tokenize(text.encode())
    assert len(tokens) == len(text.encode())
    assert llm.detokenize(tokens) == text.encode()
    half = llm.tokenize("é".encode())[:1]
    assert llm.detokenize([*half, *llm.tokenize(b"bcd")]).endswith(b"cd"), "half a character"
    assert llm.tokenize(b"<eos>", special=True) == [257]
    assert (llm.detokenize([257]), llm.detokenize([257], special=True)) == (b"", b"<eos>")
    assert len(llm.tokenize(b"<eos>")) == 5
    with pytest.raises(TypeError, match="takes bytes"):
        llm.tokenize(text)
    with pytest.raises(TypeError, match="not bytes"):
        llm.create_completion(text.encode())


def test_a_text_begins_as_its_tokenizer_says(llm: TinyLoraOnnx, tmp_path: Path) -> None:
    copy = shutil.copytree(onnx_bundles.tiny(), tmp_path / "copy")
    tokenizer = copy / "onnx" / "tokenizer.json"
    begin, text = {"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    bos = {"<bos>": {"id": "<bos>", "ids": [256], "tokens": ["<bos>"]}}
    added = {"type": "TemplateProcessing", "special_tokens": bos}
    added |= {key: [begin, text] for key in ("single", "pair")}
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "post_processor": added}))
    with runtime.load(copy, engine="onnx", n_ctx=96, n_threads=1) as other:
        assert other.tokenize(b"Hello") == [256, *llm.tokenize(b"Hello")]
        assert other.tokenize(b"Hello", add_bos=False) == llm.tokenize(b"Hello")
        assert other.encode(Sample("", answer="x", raw=True))[0] == [256]
        assert other.encode(Sample("Hello"))[0] == llm.encode(Sample("Hello"))[0], "a template has its own"
        assert other.chat_tokenizer.encode_plain("a<bos>") == llm.chat_tokenizer.encode_plain("a<bos>")


def test_a_chat_is_a_completion_of_its_template(llm: TinyLoraOnnx) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    chat = llm.create_chat_completion(MESSAGES, **options)["choices"][0]["message"]
    plain = llm.create_completion(llm.chat_tokenizer.render(MESSAGES), **options)["choices"][0]
    assert (chat["role"], chat["content"]) == ("assistant", plain["text"])


def test_a_text_is_a_message_of_the_user_unless_it_is_raw(llm: TinyLoraOnnx, tmp_path: Path) -> None:
    chat = llm.encode(Sample(({"role": "user", "content": "Hello"},)))[0]
    assert llm.detokenize(chat) == b"[user] Hello\n[assistant] "
    assert llm.encode(Sample("Hello"))[0] == chat
    assert llm.encode(Sample("Hello", raw=True))[0] == llm.tokenize(b"Hello")
    copy = shutil.copytree(onnx_bundles.without_template(), tmp_path / "copy")
    with runtime.load(copy, engine="onnx", n_ctx=96, n_threads=1) as bare:
        assert not bare.chat_tokenizer.has_template
        assert bare.encode(Sample("Hello"))[0] == llm.tokenize(b"Hello")
    tokenizer = copy / "onnx" / "tokenizer_config.json"
    described = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**described, "chat_template": onnx_bundles.TEMPLATE}))
    with runtime.load(copy, engine="onnx", n_ctx=96, n_threads=1) as other:
        assert other.encode(Sample("Hello"))[0] == chat


def test_a_template_that_refuses(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(onnx_bundles.tiny(), tmp_path / "b"))
    (bundle / "onnx" / "chat_template.jinja").write_text("{{ raise_exception('no roles here') }}")
    llm = runtime.load(bundle, engine="onnx", n_ctx=64)
    with pytest.raises(VectorError, match="chat template"):
        llm.create_chat_completion(MESSAGES)
    (bundle / "onnx" / "chat_template.jinja").unlink()
    llm = runtime.load(bundle, engine="onnx", n_ctx=64)
    with pytest.raises(VectorError, match="chat template"):
        llm.create_chat_completion(MESSAGES)


def test_the_shape_of_a_completion(llm: TinyLoraOnnx) -> None:
    whole = llm("Hello", max_tokens=6, temperature=0)
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["finish_reason"] == "length"
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 6, 11)
    chat = llm.create_chat_completion(MESSAGES, max_tokens=6)
    assert chat["object"] == "chat.completion"
    assert set(chat) == set(whole)


def test_a_stream_is_the_whole_in_pieces(llm: TinyLoraOnnx) -> None:
    for seed in range(4):
        options: dict[str, Any] = {"max_tokens": 40, "temperature": 2.0, "min_p": 0.0, "seed": seed}
        whole = llm("Hello", **options)["choices"][0]
        text, reason = joined(llm("Hello", stream=True, **options))
        assert (text, reason) == (whole["text"], whole["finish_reason"])
        chunks = list(llm.create_chat_completion(MESSAGES, stream=True, **options))
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
        message = llm.create_chat_completion(MESSAGES, **options)["choices"][0]["message"]
        assert joined(chunks)[0] == message["content"]


def test_stop_strings(llm: TinyLoraOnnx) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 3.0, "seed": 5, "min_p": 0.0, "top_k": 0}
    text = llm("Hello", **options)["choices"][0]["text"]
    stop = text[2:4]
    assert len(stop) == 2
    expected = text[: text.index(stop)]
    for given in (stop, [stop], ["never there", stop, ""]):
        cut = llm("Hello", stop=given, **options)["choices"][0]
        assert (cut["text"], cut["finish_reason"]) == (expected, "stop")
        assert joined(llm("Hello", stop=given, stream=True, **options)) == (expected, "stop")


def test_a_response_format_and_options_that_there_are_not(llm: TinyLoraOnnx) -> None:
    schema = {"type": "json_object", "schema": {"enum": ["red", "blue"]}}
    whole = llm.create_chat_completion(MESSAGES, max_tokens=20, response_format=schema)["choices"][0]
    assert json.loads(whole["message"]["content"]) in ("red", "blue")
    for option in ("grammar", "logit_bias"):
        with pytest.raises(OptionError, match=f"no option '{option}'"):
            llm.create_chat_completion(MESSAGES, **{option: {}})


def test_the_context_is_filled_to_its_last_token(llm: TinyLoraOnnx) -> None:
    for count in (95, 90, 1):
        prompt = [65 + i % 20 for i in range(count)]
        found = list(llm.generate(prompt, temperature=2.0, min_p=0.0, seed=1))
        assert len(found) == 96 - count or count == 1, "a long answer may end by itself"
        assert len(found) <= 96 - count
    for count in (96, 500):
        with pytest.raises(TinyLoraError, match=f"{count} tokens.*96.*n_ctx"):
            llm.create_completion([65] * count)
    for empty in ("", []):
        with pytest.raises(TinyLoraError, match="the prompt is empty"):
            llm.create_completion(empty)
    with pytest.raises(TinyLoraError, match="token 9999"):
        llm.create_completion([65, 9999])


def test_a_pool_and_a_batch_end_where_the_model_does(onnx: TinyLoraOnnx) -> None:
    with runtime.Pool(onnx, n_ctx=4096, slots=2) as pool:
        assert pool.n_ctx == onnx.longest
        asyncio.run(pool.complete("x" * (onnx.longest - 3), max_tokens=99))
    with pytest.raises(VectorError, match=f"pass the {onnx.longest} of a sequence"):
        Batch(onnx, n_ctx_seq=4096, sequences=2).generate([[1] * onnx.longest], max_tokens=1)
