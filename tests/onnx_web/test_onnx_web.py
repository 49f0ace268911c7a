"""A baked graph in onnxruntime-web, as a browser runs it, against ONNX Runtime in Python.

Node runs the same WebAssembly that a browser would. The package is that of `examples/browser`; without Node,
or without a way to the package, these tests are skipped and say so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from browsing.packages import node_modules
from onnx_bundles import tiny, vectors

from tinylora_edge.runtime import OnnxSession

HERE = Path(__file__).parent
TOKENS = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the script and onnxruntime-web."""
    home = tmp_path_factory.mktemp("onnx-web")
    (home / "node_modules").symlink_to(node_modules())
    shutil.copy(HERE / "run.mjs", home)
    return home


def in_node(web: Path, bundle: Path, feeds: dict[str, Any], folder: Path, adapter: Path | None = None) -> Any:
    """Run a bundle's graph in onnxruntime-web; return its logits, or the message of its error."""
    graph = bundle / "onnx"
    job = {
        "model": str(graph / "model.onnx"),
        "data": [{"path": p.name, "file": str(p)} for p in sorted(graph.glob("*.data"))],
        "feeds": {
            name: {"type": str(value.dtype), "dims": value.shape, "data": value.reshape(-1).tolist()}
            for name, value in feeds.items()
        },
        "outputs": ["logits"],
        "adapter": str(adapter) if adapter else None,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job), "utf-8")
    command = ["node", "run.mjs", str(path)]
    done = subprocess.run(command, cwd=web, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "error" in answer:
        return answer["error"]
    logits = answer["outputs"]["logits"]
    return np.array(logits["data"], np.float32).reshape(logits["dims"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_logits_equal_pythons(web: Path, tmp_path: Path, precision: str) -> None:
    bundle = tiny("required", precision=precision)
    session = OnnxSession(bundle)
    users = vectors(bundle, 2)
    effects, differences = [], []
    for rows in (session.rows(None), session.rows([users[0], None, users[1]])):
        feeds = onnx_models.feeds(session.session, [TOKENS] * len(rows.r))
        expected = session.run(["logits"], feeds, rows)[0]
        found = in_node(web, bundle, {**feeds, "tinylora_r": rows.r}, tmp_path)
        assert found.shape == expected.shape
        differences.append(np.abs(found - expected).max())
        effects.append(np.abs(expected - session.run(["logits"], feeds)[0]).max())
    assert effects[0] == 0
    # Kernels of quantized weights round activations, each in its own way: there, no vector may add to what
    # the base alone differs by.
    bound = 1e-4 if precision == "fp32" else 3 * differences[0]
    assert max(differences) <= bound < effects[1]


def test_a_vector_that_is_left_out_or_too_wide_is_an_error(web: Path, tmp_path: Path) -> None:
    """On the graph with default zeros `activeLoraAdapters` is ignored silently; here it cannot be."""
    bundle = tiny("required")
    session = OnnxSession(bundle)
    feeds = onnx_models.feeds(session.session, [TOKENS])
    adapter = bundle / "onnx" / "zeros.onnx_adapter"
    wide = {**feeds, "tinylora_r": np.zeros((1, session.rows(None).r.size + 1), np.float32)}
    for given, beside in ((feeds, None), (feeds, adapter), (wide, None)):
        said = in_node(web, bundle, given, tmp_path, beside)
        assert isinstance(said, str)
        assert "tinylora_r" in said
