"""The weights beside a graph are those it was baked for: a same-sized file of another model is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_bundles
import onnxruntime as ort
import pytest

from tinylora_edge import BaseMismatchError, load_bundle
from tinylora_edge.runtime.onnx.bundle import checked_graph, find_bundle, weights_fingerprint

KEY = "tinylora.weights"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_bundles.tiny(), tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        pytest.fail("the engine was started")

    monkeypatch.setattr(ort, "InferenceSession", fail)


def load(bundle: Path, **options: Any) -> Any:
    return onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False, **options)


def metadata(bundle: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in load(bundle).metadata_props}


def edit(bundle: Path, change: Callable[[Any], None]) -> None:
    model = load(bundle)
    change(model)
    (bundle / "onnx" / "model.onnx").write_bytes(model.SerializeToString())


def restate(bundle: Path, text: str) -> None:
    def change(model: Any) -> None:
        next(entry for entry in model.metadata_props if entry.key == KEY).value = text

    edit(bundle, change)


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "fp32"), ("qwen2", "int4")])
def test_the_device_computes_what_the_exporter_stated(architecture: str, precision: str) -> None:
    path = onnx_bundles.tiny(architecture=architecture, precision=precision)
    bundle, stated = find_bundle(path), metadata(path)
    factors = bundle.factors
    entries = json.loads(stated[KEY])
    assert len(entries) == len(factors.modules)
    assert [node["k"] for nodes in entries for node in nodes] == [a.shape[1] for a in factors.a]
    found = weights_fingerprint(checked_graph(bundle), factors.architecture, factors.modules, stated[KEY])
    assert found == stated["tinylora.fingerprint"] == bundle.bases.fingerprints[-1]


def test_the_data_of_another_fine_tune(copy: Path) -> None:
    data = copy / "onnx" / "model.onnx.data"
    values = np.fromfile(data, np.float32)
    tuned = values * np.float32(1.001)
    assert np.isfinite(tuned).all()
    data.write_bytes(tuned.tobytes())
    listed = load_bundle(copy).bases.fingerprints[-1]
    with pytest.raises(BaseMismatchError) as caught:
        checked_graph(find_bundle(copy))
    found = re.findall(r"\b([0-9a-f]{16})\.\.\.", str(caught.value))
    assert len(set(found)) == 2
    assert listed[:16] == found[1]
    assert load_bundle(copy).check_onnx() == listed  # what the graph states is right: it is the data


def test_both_ends_of_weights_are_looked_at(copy: Path) -> None:
    graph, data = checked_graph(find_bundle(copy)), copy / "onnx" / "model.onnx.data"
    good = data.read_bytes()
    nodes = [node for nodes in json.loads(metadata(copy)[KEY]) for node in nodes]
    for node in (nodes[0], nodes[len(nodes) // 2], nodes[-1]):
        place = graph.initializers[node["tensors"][0][0]]
        assert place is not None
        for where in (place.offset, place.offset + place.length - 1):
            bad = bytearray(good)
            bad[where] ^= 1
            data.write_bytes(bad)
            with pytest.raises(BaseMismatchError):
                checked_graph(find_bundle(copy))


@pytest.mark.parametrize("external", [True, False], ids=["in another file", "inside the model"])
def test_a_tool_may_lay_the_data_out_anew(copy: Path, external: bool) -> None:
    path = copy / "onnx" / "model.onnx"
    model = onnx.load(path)
    (copy / "onnx" / "model.onnx.data").unlink()
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(tensors))
    onnx.save_model(model, path, save_as_external_data=external, location="other.bin", size_threshold=0)
    assert (copy / "onnx" / "other.bin").exists() == external
    checked_graph(find_bundle(copy))


@pytest.mark.parametrize("text", ["[", "7", "[[]]", '[[{"k": 1}]]'])
def test_a_damaged_list(copy: Path, text: str) -> None:
    restate(copy, text)
    with pytest.raises(BaseMismatchError):
        checked_graph(find_bundle(copy))


@pytest.mark.parametrize("tensor", [["nowhere", 1, 64], ["lm_head", -1, 1 << 70], [None, 1, 0]])
def test_a_list_of_what_is_not_there(copy: Path, tensor: list[Any]) -> None:
    entries = json.loads(metadata(copy)[KEY])
    entries[3][0]["tensors"] = [tensor]
    restate(copy, json.dumps(entries))
    with pytest.raises(BaseMismatchError):
        checked_graph(find_bundle(copy))


@pytest.mark.parametrize("beyond", [1, (1 << 62) - 8192])
def test_a_weight_that_goes_on_behind_its_file(copy: Path, beyond: int) -> None:
    entries = json.loads(metadata(copy)[KEY])
    name, dtype, _ = entries[0][0]["tensors"][0]

    def change(model: Any) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        assert len(kept) < len(tensor.external_data)
        del tensor.external_data[:]
        tensor.external_data.extend(kept)

    edit(copy, change)
    data = max((copy / "onnx").glob("*.data"), key=lambda path: path.stat().st_size)
    entries[0][0]["tensors"] = [[name, dtype, data.stat().st_size + beyond]]
    restate(copy, json.dumps(entries))
    with pytest.raises(BaseMismatchError):
        checked_graph(find_bundle(copy))
