"""A vector in the formats of other programs, each read by the program itself: what it makes of them is what
our runtime makes of the vector."""

from __future__ import annotations

import copy
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import models
import numpy as np
import onnxruntime
import pytest
import support
from peft import PeftModel

from tinylora_edge import Bases, Basis, MicroVector, load_bundle, runtime
from tinylora_edge.errors import ExportError, MissingExtraError, VectorError
from tinylora_edge.exporters import ExportSettings, convert, export_gguf
from tinylora_edge.formats.onnx_adapter import to_adapter

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "logits_all": True}
# Rounded to float16, keys and values that are 1e-7 apart are 1e-3 apart now and then.
OPTIONS |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "verbose": False}
TOKENS = [1, 5, 9, 33, 7, 21]
KINDS = ["5 numbers", "rank 2", "rank 8", "learned", "f32"]


@pytest.fixture(scope="module")
def world(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Basis]]:
    """Kind -> a bundle, and one of its bases."""
    root = tmp_path_factory.mktemp("convert")
    whole = export_gguf(tiny_gguf, root / "whole")
    exact = export_gguf(tiny_gguf, root / "exact", settings=ExportSettings(factor_dtype="f32"))
    with_learned = whole.bases.with_projection(support.learned(whole.bases.factors, 5))
    made = {name: (whole.output, whole.bases.basis(rank=int(name[-1]))) for name in ("rank 2", "rank 8")}
    made["5 numbers"] = whole.output, whole.bases.basis(numbers=5)
    made["f32"] = exact.output, exact.bases.basis(rank=3)
    learned = support.bundle_with(with_learned, tiny_gguf, root / "learned")
    made["learned"] = learned, with_learned.basis(numbers=5)
    return made


def ours(bundle: Path, vector: MicroVector) -> np.ndarray:
    llm = runtime.load(bundle, vector, **OPTIONS)
    logits = models.llama_logits(llm, TOKENS)
    llm.close()
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_loads_a_gguf_lora(world: Any, tmp_path: Path, kind: str) -> None:
    bundle, basis = world[kind]
    vector = MicroVector.random(basis, 0.1 * np.sqrt(basis.size), seed=3)
    convert.write_gguf_lora(basis, vector, tmp_path / "v.gguf")
    llm = llama_cpp.Llama(str(bundle / "base.gguf"), lora_path=str(tmp_path / "v.gguf"), **OPTIONS)
    found = models.llama_logits(llm, TOKENS)
    llm.close()
    expected = ours(bundle, vector)
    assert np.abs(expected - ours(bundle, MicroVector.zeros(basis))).max() > 0.01, "it does something"
    np.testing.assert_allclose(found, expected, atol=2e-5)
    tensors = {tensor.name: tensor.shape for tensor in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    assert tensors["blk.0.attn_q.weight.lora_a"].tolist() == [64, basis.rank]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_a_lora(world: Any, tiny_weights: Path, tmp_path: Path, kind: str) -> None:
    _, basis = world[kind]
    vector = MicroVector.random(basis, 0.1 * np.sqrt(basis.size), seed=4)
    convert.write_peft_lora(basis, vector, tmp_path / "lora", tiny_weights)
    with pytest.raises(ExportError, match="exists already"):
        convert.write_peft_lora(basis, vector, tmp_path / "lora", tiny_weights)
    model = models.tiny_model("llama")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora").eval()
    with models.merged(model, basis, vector) as merged:
        logits = (models.torch_logits(each, TOKENS) for each in (loaded, merged))
        np.testing.assert_allclose(*logits, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "qwen2moe"])
def test_llama_cpp_runs_a_merged_model(tmp_path: Path, architecture: str) -> None:
    floats = models.write_gguf(models.tiny_model(architecture), tmp_path / "floats.gguf")
    packed = models.quantize_file(floats, tmp_path / "packed.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1)
    data = bytearray(floats.read_bytes())
    data[16:24] = (data[16] + 1).to_bytes(8, "little")  # one more key: an empty list
    kinds = gguf.GGUFValueType
    data[24:24] = struct.pack("<Q8sIIQ", 8, b"tiny.set", kinds.ARRAY, kinds.STRING, 0)
    floats.write_bytes(data)
    for base in (floats, models.split_gguf(packed, tmp_path, 9)[0]):
        bundle = export_gguf(base, tmp_path / f"{base.stem}-bundle").output
        basis = load_bundle(bundle).basis(rank=2)
        vector = MicroVector.random(basis, 0.1 * np.sqrt(basis.size), seed=3)
        convert.write_merged_gguf(basis, vector, load_bundle(bundle).base, tmp_path / "merged.gguf")
        llm = llama_cpp.Llama(str(tmp_path / "merged.gguf"), **OPTIONS)
        found = models.llama_logits(llm, TOKENS)
        llm.close()
        expected, plain = ours(bundle, vector), ours(bundle, MicroVector.zeros(basis))
        effect = np.abs(expected - plain).max()
        assert np.abs(found - expected).max() < (1e-3 if base == floats else 0.5) * effect
        before, after = gguf.GGUFReader(floats), gguf.GGUFReader(tmp_path / "merged.gguf")
        kinds = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
        assert {kinds[module] for module in basis.modules} == {"F32" if base == floats else "Q8_0"}
        for key, field in before.fields.items():
            if key.startswith(("tokenizer.", before.fields["general.architecture"].contents())):
                assert after.fields[key].contents() == field.contents(), key


def test_of_another_model(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, basis = world["rank 2"]
    vector = MicroVector.zeros(basis)
    deeper = models.write_hf(models.tiny_model("llama", blocks=1), tmp_path / "one")
    with pytest.raises(ExportError, match=r"has no layer for blk\.1\.attn_q\.weight.*another model"):
        convert.write_peft_lora(basis, vector, tmp_path / "lora", deeper)
    for name, other in (("wide", {"hidden": 128}), ("drawn", {"seed": 1})):
        other_hf = models.write_hf(models.tiny_model("llama", **other), tmp_path / name)
        with pytest.raises(ExportError, match="another model"):
            convert.write_peft_lora(basis, vector, tmp_path / "lora", other_hf)
    models.tiny_model("llama").model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ExportError, match=r"layers\.0\.\S+ without a prefix"):
        convert.write_peft_lora(basis, vector, tmp_path / "lora", tmp_path / "bare")
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"tinylora-edge\[export\]"):
        convert.write_peft_lora(basis, vector, tmp_path / "lora", deeper)
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("size", [{"numbers": 4}, {"rank": 1}, {"rank": (5, 3)}, {"rank": (4, 1)}], ids=str)
def test_onnx_runtime_reads_what_is_written(tmp_path: Path, size: dict[str, Any]) -> None:
    basis = Bases(support.random_factors(rank=3, outputs=5)).basis(**size)
    vector = replace(MicroVector.random(basis, 0.3, seed=5), sequence=9)
    path = tmp_path / "v.onnx_adapter"
    path.write_bytes(to_adapter(vector, basis))
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    version = int.from_bytes(bytes.fromhex(basis.digest[:8]), "big", signed=True)
    assert (found.get_adapter_version(), found.get_model_version()) == (9, version)
    (name,) = found.get_parameters()
    assert name == "tinylora_r"
    value = found.get_parameters()[name].numpy()
    assert (value.dtype, value.shape) == (np.float32, (1, 6 * 15))
    (p, q), r = basis.shape, value.reshape(6, 5, 3).copy()
    assert np.array_equal(r[:, :p, :q], basis.R(vector))
    r[:, :p, :q] = 0
    assert not r.any(), "zeros beyond R of a vector"
    with pytest.raises(VectorError, match="2 values"):
        to_adapter(MicroVector([1, 2]), basis)
