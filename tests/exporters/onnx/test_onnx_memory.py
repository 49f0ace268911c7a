"""A model larger than memory is baked: its weights are copied by the system and never held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

BLOCKS, HIDDEN, MIDDLE, VOCABULARY = 6, 1024, 2816, 60_000
SIZE = 4 * (BLOCKS * (4 * HIDDEN**2 + 3 * HIDDEN * MIDDLE) + VOCABULARY * HIDDEN)  # 0.55 GB
ALLOWED = 150_000_000  # what baking may add to a process that has imported everything

# In a process of its own, whose peak is its own. Factors are known, as each weight was made of them.
CODE = """
import resource, sys
from pathlib import Path
import numpy as np
import onnx
from tinylora_edge.formats.side_tensors import load_bases
from tinylora_edge.exporters.onnx.bake import bake
factors = load_bases(sys.argv[2]).factors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bake(sys.argv[1], factors, sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.fixture
def big(tmp_path: Path) -> tuple[Path, Path]:
    """A model shaped as a 7B, scaled down, of rank 2, with external data; and its factors."""
    from tinylora_edge import Bases, Factors
    from tinylora_edge.formats.side_tensors import save_bases

    rng = np.random.default_rng(0)
    shapes = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (MIDDLE, HIDDEN), "ffn_up": (MIDDLE, HIDDEN),
        "ffn_down": (HIDDEN, MIDDLE),
    }  # fmt: skip
    names = {"attn_q": "attn/q_proj", "attn_k": "attn/k_proj", "attn_v": "attn/v_proj",
             "attn_output": "attn/o_proj", "ffn_gate": "mlp/gate_proj", "ffn_up": "mlp/up_proj",
             "ffn_down": "mlp/down_proj"}  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    nodes, tensors, a, b, modules = [], [], {}, {}, []
    offset = 0
    with open(source / "model.onnx.data", "wb") as file:

        def external(name: str, matrix: np.ndarray) -> str:
            nonlocal offset
            file.write(np.ascontiguousarray(matrix, np.float32).data)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=matrix.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "model.onnx.data"),
                ("offset", offset),
                ("length", 4 * matrix.size),
            ):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += 4 * matrix.size
            return name

        h = "hidden"
        for block in range(BLOCKS):
            for kind, (n_out, n_in) in shapes.items():
                left = np.linalg.qr(rng.standard_normal((n_out, 2)))[0]
                right = np.linalg.qr(rng.standard_normal((n_in, 2)))[0]
                module = f"blk.{block}.{kind}.weight"
                a[module] = right.T.astype(np.float32)
                b[module] = (left * [3.0, 2.0]).astype(np.float32)
                modules.append(module)
                x = f"wide.{block}" if kind == "ffn_down" else h
                weight = external(f"w.{module}", a[module].T @ b[module].T)
                name = f"/model/layers.{block}/{names[kind]}/MatMul"
                nodes.append(helper.make_node("MatMul", [x, weight], [f"{module}.out"], name=name))
                if kind == "ffn_up":
                    nodes.append(helper.make_node("Identity", [f"{module}.out"], [f"wide.{block}"]))
            h = f"blk.{block}.ffn_down.weight.out"
        head = external("head", np.zeros((HIDDEN, VOCABULARY), np.float32))
        nodes.append(helper.make_node("MatMul", [h, head], ["logits"], name="/lm_head/MatMul"))
    shape = ["batch", "sequence", HIDDEN]
    inputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape[:2], VOCABULARY])]
    model = helper.make_model(helper.make_graph(nodes, "big", inputs, outputs, tensors), ir_version=10)
    onnx.save(model, source / "model.onnx")
    pairs = tuple(a.values()), tuple(b.values())
    factors = Factors(architecture="llama", modules=tuple(modules), rank=2, a=pairs[0], b=pairs[1])
    save_bases(Bases(factors), tmp_path / "basis.gguf")
    return source, tmp_path / "basis.gguf"


def test_memory(big: tuple[Path, Path], tmp_path: Path) -> None:
    source, basis = big
    data = source / "model.onnx.data"
    assert data.stat().st_size == SIZE > 3 * ALLOWED
    output = tmp_path / "output"
    output.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, source, basis, output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < ALLOWED
    assert (output / "model.onnx.data").stat().st_size == SIZE
    with open(data, "rb") as left, open(output / "model.onnx.data", "rb") as right:
        for part in iter(lambda: left.read(1 << 24), b""):
            assert part == right.read(1 << 24)
