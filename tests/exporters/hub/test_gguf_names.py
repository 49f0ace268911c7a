"""Names of GGUF files: their quantization, their parts, and which one is meant."""

from __future__ import annotations

import pytest

from tinylora_edge import ExportError
from tinylora_edge.exporters.hub.gguf_names import choose, models_in, of_pattern


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "q4_k_m"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "q4_k_m"),
        ("Mistral-7B-Instruct-v0.3.Q8_0.gguf", "q8_0"),
        ("gemma-3-1b-it-f16.gguf", "f16"),
        ("qwen2.5-7b-instruct-fp16.gguf", "f16"),
        ("Qwen3-0.6B-BF16.gguf", "bf16"),
        ("gpt-oss-20b-MXFP4.gguf", "mxfp4"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "ud-q4_k_xl"),
        ("Model-IQ2_XXS.gguf", "iq2_xxs"),
        ("Model-TQ1_0.gguf", "tq1_0"),
        ("Q4_0.GGUF", "q4_0"),
        ("BF16/Model-BF16.gguf", "bf16"),
        ("Llama-3.2-1B.gguf", "llama-3.2-1b"),
        ("model-q4.gguf", "q4"),
    ],
)
def test_the_quantization_of_a_name(name, quant):
    (model,) = models_in([name])
    assert model.quant == quant
    assert model.files == (name,)


def test_what_is_no_model_is_left_out():
    beside = ["mmproj-model-f16.gguf", "Model.imatrix.gguf", "my-lora-f16.gguf", "README.md", "x.gguf.txt"]
    assert [model.stem for model in models_in([*beside, "Exploration-Q8_0.gguf"])] == ["Exploration-Q8_0"]


def test_parts_are_one_model_in_order():
    names = [f"BF16/m-bf16-{n:05}-of-00003.gguf" for n in (3, 1, 2)]
    (model,) = models_in(names)
    assert model.files == tuple(sorted(names))
    assert (model.stem, model.quant, model.missing) == ("BF16/m-bf16", "bf16", ())


def test_a_missing_part_is_named():
    models = models_in(["m-q4_0-00001-of-00003.gguf", "m-q4_0-00003-of-00003.gguf"])
    with pytest.raises(
        ExportError, match=r"here has 2 of the 3 parts of m-q4_0: m-q4_0-00002-of-00003\.gguf is missing"
    ):
        choose(models, None, "here")


NAMES = [
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "m-F16.gguf",
    "m-Q4_0-00001-of-00002.gguf",
    "m-Q4_0-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("quant", "default", "stem"),
    [
        (None, None, "m-Q4_K_M"),
        (None, "q8_0", "m-Q8_0"),
        ("q4_0", "q8_0", "m-Q4_0"),
        ("FP16", None, "m-F16"),
        ("m-q8_0.gguf", None, "m-Q8_0"),
        ("m-Q4_0-00001-of-00002.gguf", None, "m-Q4_0"),
    ],
)
def test_choosing(quant, default, stem):
    assert choose(models_in(NAMES), quant, "here", default).stem == stem


def test_a_single_model_needs_no_usual_name():
    assert choose(models_in(["strange.gguf"]), None, "here").stem == "strange"


@pytest.mark.parametrize(
    ("names", "quant", "match"),
    [
        (
            NAMES,
            "q5_k_m",
            r"here has no quantization 'q5_k_m': choose one with --quant: f16, q4_0, q4_k_m, q8_0",
        ),
        (["a.gguf", "b.gguf"], None, r"no usual quantization: choose one with --quant: a, b"),
        (
            ["a-q8_0.gguf", "b-q8_0.gguf"],
            None,
            r"several files for q8_0: name one with --quant: a-q8_0, b-q8_0",
        ),
        (["README.md"], None, "here has no GGUF model"),
    ],
)
def test_what_cannot_be_chosen(names, quant, match):
    with pytest.raises(ExportError, match=match):
        choose(models_in(names), quant, "here")


def test_a_name_tells_two_of_one_quantization_apart():
    models = models_in(["a-q8_0.gguf", "sub/b-q8_0.gguf"])
    assert choose(models, "b-q8_0", "here").files == ("sub/b-q8_0.gguf",)


def test_a_pattern_leaves_other_models_of_the_repository_out():
    models = models_in(["Qwen3-4B-Q8_0.gguf", "Qwen3-4B-Thinking-Q8_0.gguf", "other-Q8_0.gguf"])
    found = of_pattern(models, "qwen3-4b-{quant}.gguf")
    assert choose(found, "q8_0", "here").stem == "Qwen3-4B-Q8_0"
