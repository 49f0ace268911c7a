"""`runtime.load` of an ONNX bundle: what it takes, and what it refuses before the engine starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_bundles
import onnxruntime_genai as og
import pytest

from tinylora_edge import Bases, load_bundle, runtime
from tinylora_edge.errors import BaseMismatchError, CorruptBasisError, TinyLoraError
from tinylora_edge.formats.onnx_graph import onnx_fingerprint
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.runtime import OnnxSession, TinyLoraOnnx

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_a_bundle_its_directory_and_its_graph(bundle: Path, tmp_path: Path) -> None:
    (vector,) = onnx_bundles.vectors(bundle, 1)
    alone = Path(shutil.copytree(bundle / "onnx", tmp_path / "alone"))
    shutil.copy(bundle / "basis.gguf", alone)
    expected = TinyLoraOnnx(bundle, **OPTIONS)
    expected.swap(vector)
    answer = list(expected.generate([65, 66], max_tokens=5))
    for base in (bundle, str(bundle), bundle / "onnx", bundle / "onnx" / "model.onnx", alone):
        llm = runtime.load(base, vector, **OPTIONS)
        assert isinstance(llm, TinyLoraOnnx)
        assert llm.vector == vector
        assert list(llm.generate([65, 66], max_tokens=5)) == answer
    assert OnnxSession(bundle / "onnx" / "model.onnx").bases.id == expected.bases.id


def test_the_engine_is_what_the_bundle_has(bundle: Path, tmp_path: Path, smollm2_bundle: Path) -> None:
    assert runtime.engine_of(bundle) == runtime.engine_of(bundle, "onnx") == "onnx"
    assert runtime.engine_of(smollm2_bundle) == "llama"
    with pytest.raises(TinyLoraError, match=r"lacks a GGUF base.*--format gguf"):
        runtime.load(bundle, engine="llama")
    with pytest.raises(TinyLoraError, match=r"lacks an ONNX graph.*--format onnx"):
        runtime.load(smollm2_bundle, engine="onnx")
    with pytest.raises(TinyLoraError, match="'vllm'"):
        runtime.load(bundle, engine="vllm")
    both = Path(shutil.copytree(bundle, tmp_path / "both"))
    (both / "base.gguf").write_bytes(b"")
    assert runtime.engine_of(both) == "llama"
    assert runtime.engine_of(both, "onnx") == "onnx"


def refused(path: Path, *parts: str, error: type[Exception] = BaseMismatchError) -> None:
    for load in (lambda: runtime.load(path, **OPTIONS), lambda: OnnxSession(path)):
        with pytest.raises(error) as caught:
            load()
        for part in parts:
            assert part in str(caught.value)


def test_a_part_that_is_missing_or_damaged(copy: Path, engine_starts: list[Any]) -> None:
    """Of a graph that is another one: tests/formats/test_onnx_graph.py."""
    basis, graph = copy / "basis.gguf", copy / "onnx/model.onnx"
    good = basis.read_bytes()
    basis.write_bytes(good[:-100])
    refused(copy, str(basis), error=CorruptBasisError)
    basis.unlink()
    refused(copy, "basis.gguf", error=FileNotFoundError)
    basis.write_bytes(good)
    graph.write_bytes(b"this is no model" * 9)
    refused(copy, "fingerprint")
    graph.unlink()
    refused(copy, "model.onnx", error=FileNotFoundError)
    assert engine_starts == []


def test_the_basis_of_another_export_or_base(copy: Path, engine_starts: list[Any]) -> None:
    bases, path = load_bundle(copy).bases, copy / "basis.gguf"
    path.unlink()  # it is mapped
    save_bases(Bases(bases.factors, fingerprints=("0" * 64,)), path)
    refused(copy, "0000000000000000", bases.fingerprints[-1][:16])
    path.unlink()
    shutil.copy(onnx_bundles.tiny(rank=3) / "basis.gguf", copy)
    refused(copy, load_bundle(copy).bases.fingerprints[-1][:16])
    assert engine_starts == []


def newer(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.ir_version = 99
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def linked(folder: Path) -> None:
    (folder / "model.onnx.data").rename(folder.parent / "elsewhere")
    (folder / "model.onnx.data").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("change", [newer, linked])
def test_what_onnx_runtime_itself_refuses(copy: Path, change: Callable[[Path], None]) -> None:
    change(copy / "onnx")
    bases, path = load_bundle(copy).bases, copy / "basis.gguf"
    path.unlink()  # it is mapped
    save_bases(bases.with_fingerprint(onnx_fingerprint(copy / "onnx")), path)
    refused(copy, "cannot load", str(copy / "onnx" / "model.onnx"))


def test_a_graph_without_a_configuration_runs_in_a_session_alone(copy: Path) -> None:
    (copy / "onnx" / "genai_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="OnnxSession"):
        runtime.load(copy)
    OnnxSession(copy)


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"context_length": "x", "vocab_size": 3}}', "[1]"])
def test_a_damaged_configuration(copy: Path, content: str) -> None:
    (copy / "onnx" / "genai_config.json").write_text(content)
    with pytest.raises(TinyLoraError, match=r"genai_config\.json is damaged"):
        runtime.load(copy)


@pytest.mark.parametrize(
    "config",
    [
        '{"model": {"decoder": {"session_options": {"custom_ops_library": "evil.so"}}}}',
        '{"decoder": {"session_options": {"custom_ops_libr\\u0061ry": "/a"}}}',
        '{"decoder": {"session_options": {"custom_ops_library": "/a"}, "session_options": {}}}',
        '{"model": {"decoder": {"pipeline": [{"a": {"session_options": {"custom_ops_library": "a.so"}}}]}}}',
        '{"model": {"decoder": {"session_options": {"provider_options": [{"qnn": {"backend_path": "a"}}]}}}}',
    ],
)
def test_a_configuration_that_names_native_code(copy, config, engine_starts, monkeypatch):
    path = copy / "onnx" / "genai_config.json"
    whole = json.loads(path.read_text())
    whole["hidden"] = "HERE"
    path.write_text(json.dumps(whole).replace('"HERE"', config))
    touched: list[Any] = []
    monkeypatch.setattr(og, "Config", lambda *each: touched.append(each))
    for start in (runtime.load, OnnxSession, TinyLoraOnnx, runtime.Pool):
        with pytest.raises(BaseMismatchError, match=r"has the key '(custom_ops_library|backend_path)'|twice"):
            start(copy)
    assert touched == engine_starts == []
