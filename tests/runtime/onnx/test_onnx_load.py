"""`runtime.load` of an ONNX bundle: what it takes, and what it refuses before the engine starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_bundles
import onnxruntime_genai as og
import pytest

from tinylora_edge import (
    BaseMismatchError,
    ChecksumError,
    CorruptBasisError,
    MicroVector,
    Policy,
    RollbackError,
    TinyLoraError,
    VectorError,
    load_basis,
    runtime,
    save_basis,
)
from tinylora_edge.runtime import OnnxSession, TinyLoraOnnx

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def vector(bundle: Path) -> MicroVector:
    return onnx_bundles.vectors(bundle, 1)[0]


@pytest.fixture
def engine_starts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations that genai was told to load."""
    started: list[Any] = []
    real = og.Model

    def spy(config: Any) -> Any:
        started.append(config)
        return real(config)

    monkeypatch.setattr(og, "Model", spy)
    return started


# What it takes


def test_a_bundle_its_directory_and_its_graph(bundle: Path, vector: MicroVector, tmp_path: Path) -> None:
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
    assert OnnxSession(bundle / "onnx" / "model.onnx").basis.digest == expected.basis.digest


def test_a_relative_path_in_any_alphabet(
    bundle: Path, vector: MicroVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "Модель für alle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for base in ("Модель für alle", "Модель für alle/onnx", "Модель für alle/onnx/model.onnx"):
        assert runtime.load(base, vector, **OPTIONS).vector == vector
        assert OnnxSession(base).flavour == "default"
    monkeypatch.chdir(tmp_path / "Модель für alle" / "onnx")
    for base in (".", "model.onnx"):
        assert runtime.load(base, vector, **OPTIONS).vector == vector


def test_vectors_in_every_form(bundle: Path, vector: MicroVector) -> None:
    data = vector.to_bytes(load_basis(bundle / "basis.gguf"))
    for form in (vector, data, bytearray(data), memoryview(data)):
        assert runtime.load(bundle, form, **OPTIONS).vector == vector
    assert runtime.load(bundle, **OPTIONS).vector is None


def test_the_policy_is_that_of_load_and_of_every_swap(
    bundle: Path, vector: MicroVector, engine_starts: list[Any]
) -> None:
    basis = load_basis(bundle / "basis.gguf")
    raw, frame = vector.to_bytes(basis, tag=None), MicroVector(vector.values, sequence=9).to_bytes(basis)
    policy = Policy(require="checksum")
    with pytest.raises(ChecksumError):
        runtime.load(bundle, raw, policy=policy, **OPTIONS)
    assert engine_starts == []
    llm = runtime.load(bundle, frame, policy=policy, **OPTIONS)
    with pytest.raises(ChecksumError):
        llm.swap(raw)
    with pytest.raises(RollbackError):
        llm.swap(vector.to_bytes(basis))
    assert llm.vector == MicroVector(vector.values, sequence=9)


def test_the_engine_is_what_the_bundle_has(bundle: Path, tmp_path: Path, smollm2_bundle: Path) -> None:
    assert runtime.engine_of(bundle) == runtime.engine_of(bundle, "onnx") == "onnx"
    assert runtime.engine_of(smollm2_bundle) == "llama"
    with pytest.raises(TinyLoraError, match=r"lacks a GGUF base.*exporters.export_gguf"):
        runtime.load(bundle, engine="llama")
    with pytest.raises(TinyLoraError, match=r"lacks an ONNX graph.*exporters.export_onnx"):
        runtime.load(smollm2_bundle, engine="onnx")
    with pytest.raises(TinyLoraError, match="'vllm'"):
        runtime.load(bundle, engine="vllm")
    both = Path(shutil.copytree(bundle, tmp_path / "both"))
    (both / "base.gguf").write_bytes(b"")
    assert runtime.engine_of(both) == "llama"
    assert runtime.engine_of(both, "onnx") == "onnx"


def test_silent(bundle: Path, vector: MicroVector, capfd: pytest.CaptureFixture[str]) -> None:
    llm = runtime.load(bundle, vector, **OPTIONS)
    llm.create_completion("x", max_tokens=3)
    llm.close()
    assert capfd.readouterr() == ("", "")


# What it refuses


def test_bad_vectors_are_refused_before_the_engine_starts(
    bundle: Path, vector: MicroVector, engine_starts: list[Any]
) -> None:
    frame = vector.to_bytes(load_basis(bundle / "basis.gguf"))
    for data in (b"", frame[:-2], frame[:-1] + bytes([frame[-1] ^ 1]), MicroVector(vector.values[:2])):
        with pytest.raises(VectorError):
            runtime.load(bundle, data, **OPTIONS)
    assert engine_starts == []


@pytest.mark.parametrize("part", ["onnx/model.onnx", "basis.gguf"])
def test_a_missing_part(copy: Path, part: str, engine_starts: list[Any]) -> None:
    (copy / part).unlink()
    with pytest.raises(FileNotFoundError, match=Path(part).name):
        runtime.load(copy)
    assert engine_starts == []


def refused(path: Path, *parts: str, error: type[Exception] = BaseMismatchError) -> None:
    """Both ways of loading refuse, with the same words."""
    for load in (lambda: runtime.load(path, **OPTIONS), lambda: OnnxSession(path)):
        with pytest.raises(error) as caught:
            load()
        for part in parts:
            assert part in str(caught.value)


def test_missing_data(copy: Path, engine_starts: list[Any]) -> None:
    (copy / "onnx" / "model.onnx.data").unlink()
    refused(copy, "model.onnx.data", "does not exist")
    assert engine_starts == []


def test_data_behind_a_link(copy: Path, tmp_path: Path, engine_starts: list[Any]) -> None:
    data = copy / "onnx" / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    refused(copy, "model.onnx.data", "symbolic link", "copy")
    assert engine_starts == []


def test_data_cut_short(copy: Path, engine_starts: list[Any]) -> None:
    data = copy / "onnx" / "model.onnx.data"
    size = data.stat().st_size
    os.truncate(data, size - 100)
    refused(copy, "model.onnx.data", f"{size - 100:,}", f"{size:,}")
    assert engine_starts == []


def test_no_model_at_all(copy: Path, engine_starts: list[Any]) -> None:
    graph = copy / "onnx" / "model.onnx"
    good = graph.read_bytes()
    for bad in (b"", b"this is no model" * 9, good[: len(good) // 2], good[:-10]):
        graph.write_bytes(bad)
        refused(copy, str(graph))
    assert engine_starts == []


def test_a_damaged_basis(copy: Path) -> None:
    path = copy / "basis.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    refused(copy, str(path), error=CorruptBasisError)


def test_the_basis_of_another_export(copy: Path, engine_starts: list[Any]) -> None:
    shutil.copy(onnx_bundles.tiny("default", "dense") / "basis.gguf", copy)
    digests = [load_basis(p / "basis.gguf").digest[:16] for p in (onnx_bundles.tiny(), copy)]
    refused(copy, *digests)
    assert engine_starts == []


def test_a_basis_that_lists_another_base(copy: Path, engine_starts: list[Any]) -> None:
    basis = load_basis(copy / "basis.gguf")
    path = copy / "basis.gguf"
    path.unlink()  # it is mapped
    save_basis(replace(basis, base_fingerprints=("0" * 64,)), path)
    refused(copy, "0000000000000000", basis.base_fingerprints[-1][:16])
    assert engine_starts == []


def edit(copy: Path, change: Any) -> None:
    path = copy / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def test_a_graph_that_was_not_baked(copy: Path, engine_starts: list[Any]) -> None:
    edit(copy, lambda model: model.ClearField("metadata_props"))
    refused(copy, "model.onnx", "no basis")
    assert engine_starts == []


def test_a_graph_whose_input_a_tool_removed(copy: Path, engine_starts: list[Any]) -> None:
    def remove(model: Any) -> None:
        kept = [node for node in model.graph.input if node.name != "tinylora_v"]
        del model.graph.input[:]
        model.graph.input.extend(kept)

    edit(copy, remove)
    refused(copy, "tinylora_v")
    assert engine_starts == []


def test_a_graph_whose_default_a_tool_removed(copy: Path, engine_starts: list[Any]) -> None:
    def remove(model: Any) -> None:
        kept = [tensor for tensor in model.graph.initializer if tensor.name != "tinylora_v"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    edit(copy, remove)
    refused(copy, "default", "lacks an initializer")
    assert engine_starts == []


@pytest.mark.parametrize(("what", "number"), [("IR", 99), ("opset", 99)])
def test_a_graph_of_the_future(copy: Path, what: str, number: int) -> None:
    def raise_it(model: Any) -> None:
        if what == "IR":
            model.ir_version = number
        else:
            next(opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")).version = number

    edit(copy, raise_it)
    refused(copy, "cannot load", f"{what} {number}" if what == "IR" else f"ai.onnx {number}")


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


def test_a_configuration_that_genai_refuses(copy: Path) -> None:
    path = copy / "onnx" / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["type"] = "nonsense"
    path.write_text(json.dumps(config))
    with pytest.raises(BaseMismatchError, match="cannot load"):
        runtime.load(copy)


# What it needs


def in_a_process(code: str, *args: object, blocked: tuple[str, ...] = ()) -> str:
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{block}{code}", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_generating_needs_no_heavy_package(bundle: Path) -> None:
    code = (
        "from tinylora_edge import MicroVector, runtime\n"
        "llm = runtime.load(sys.argv[1], n_ctx=64)\n"
        "llm.swap(MicroVector.random(llm.basis, 0.5))\nllm('x', max_tokens=2)\nprint('done')"
    )
    heavy = ("torch", "transformers", "onnx", "llama_cpp", "scipy", "safetensors", "typer", "rich")
    assert in_a_process(code, bundle, blocked=heavy) == "done\n"


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime_genai"])
def test_a_missing_engine_names_the_pip_command(bundle: Path, package: str) -> None:
    code = (
        "from tinylora_edge import MissingExtraError, runtime\n"
        "for get in (lambda: runtime.load(sys.argv[1]), lambda: runtime.TinyLoraOnnx):\n"
        "    try:\n        get()\n"
        "    except MissingExtraError as error:\n        print(error)"
    )
    said = in_a_process(code, bundle, blocked=(package,)).splitlines()
    assert len(said) == 2
    for line in said:
        assert f'{package.replace("_", "-")}. Install it with: pip install "tinylora-edge[onnx]"' in line


def test_a_process_may_end_with_everything_in_use(bundle: Path) -> None:
    code = (
        "from tinylora_edge import MicroVector, runtime\n"
        "llm = runtime.load(sys.argv[1], n_ctx=64)\n"
        "llm.swap(MicroVector.random(llm.basis, 0.5))\n"
        "stream = llm.create_completion('x', stream=True); next(stream)\n"
        "class Cycle: pass\n"
        "cycle = Cycle(); cycle.all = [cycle, llm, stream]\nprint('end')"
    )
    assert in_a_process(code, bundle) == "end\n"


def test_no_adapter_file_stays_behind(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    llm = runtime.load(bundle, **OPTIONS)
    for vector in onnx_bundles.vectors(bundle, 3):
        llm.swap(vector)
        llm("x", max_tokens=1)
    assert list(tmp_path.iterdir()) == []


# Native code


@pytest.mark.parametrize(
    "config",
    [
        '{"model": {"decoder": {"session_options": {"custom_ops_library": "evil.so"}}}}',
        '{"model": {"decoder": {"session_options": {"custom_ops_library": "/tmp/evil.so"}}}}',
        '{"decoder": {"session_options": {"custom_ops_libr\\u0061ry": "a"}, "session_options": {}}}',
        '{"model": {"encoder": {"session_options": {"custom_ops_library": "evil.so"}}}}',
        '{"model": {"decoder": {"pipeline": [{"a": {"session_options": {"custom_ops_library": "a.so"}}}]}}}',
        '{"model": {"decoder": {"session_options": {"provider_options": [{"qnn": {"backend_path": "a"}}]}}}}',
    ],
)
def test_a_configuration_that_names_native_code(
    copy: Path, config: str, engine_starts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused by name before any engine reads it, also where a later key hides it."""
    path = copy / "onnx" / "genai_config.json"
    whole = json.loads(path.read_text())
    whole["hidden"] = "HERE"
    path.write_text(json.dumps(whole).replace('"HERE"', config))
    touched: list[Any] = []
    monkeypatch.setattr(og, "Config", lambda *each: touched.append(each))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *each, **options: touched.append(each))
    for start in (runtime.load, OnnxSession, TinyLoraOnnx, runtime.Pool):
        with pytest.raises(
            BaseMismatchError, match=r"genai_config.json has the key '(custom_ops_library|back)"
        ):
            start(copy)
    assert touched == engine_starts == []
