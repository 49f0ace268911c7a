"""A chat template, which came with a model, is tried where it can be stopped, before an engine runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import models
import onnx_bundles
import pytest

from tinylora_edge import TinyLoraError, runtime
from tinylora_edge.runtime import template
from tinylora_edge.runtime.template import check_template

GIGABYTES = "{{ 'x' * 4000000000 }}"
DOUBLED = (
    "{% set n = namespace(x='xx') %}{% for _ in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% for message in messages %}", "cannot be read"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "cannot be read"),
        (GIGABYTES, "1 GB"),
        (DOUBLED, "1 GB"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(TinyLoraError, match=f"chat template.*{why}"):
        check_template(text)


def test_what_may_run() -> None:
    check_template(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    )
    check_template("{{ raise_exception('no system message') }}")  # it says so where it is used


def test_an_endless_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 2.0)
    with pytest.raises(TinyLoraError, match="chat template takes more than 2 s"):
        check_template(ENDLESS)


@pytest.mark.parametrize("text", ["{% if", GIGABYTES], ids=["no Jinja", "4 GB"])
def test_llama_cpp_does_not_load_it(tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    model = models.tiny_model("llama")
    base = models.write_gguf(model, tmp_path / "m.gguf", metadata={"tokenizer.chat_template": text})
    shutil.copy(tiny_bundle / "basis.gguf", tmp_path / "m.basis.gguf")
    with pytest.raises(TinyLoraError, match="the model's chat template"):
        runtime.load(base, n_ctx=64, n_threads=1)


def test_onnxruntime_does_not_render_it(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(onnx_bundles.tiny(), tmp_path / "b"))
    (bundle / "onnx" / "chat_template.jinja").write_text(GIGABYTES)
    with runtime.load(bundle, engine="onnx", n_ctx=64, n_threads=1) as llm:
        with pytest.raises(TinyLoraError, match="chat template takes more than"):
            llm.create_chat_completion([{"role": "user", "content": "Hi"}])
        assert llm("Hi", max_tokens=1)["choices"]
