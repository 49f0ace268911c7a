"""What baking a 7B-shaped int4 graph takes: seconds, and the peak of resident memory.

Writes such a graph (MatMulNBits in blocks of 32; 32 layers, 4096 wide; float32 embedding and head) with
5.1 GB of external data, and bakes a basis into it in a process of its own, whose peak is its own; in turn
with a mere copy of the data, which no baking can undercut. Weights are random, of rank 2, so that their
factors are known, and the same in every layer: drawing 6.5 billion numbers would take longer than all else.

Needs 10.3 GB of free disk at --scale 1 (data and one copy), and removes all that it wrote.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tinylora_edge import Basis, save_basis
from tinylora_edge.tying import tie

BAKE, COPY = "bake", "plain copy of the data"
BLOCK, GROUPS = 32, 13
MAX_SECONDS, MAX_BYTES = 60, 1e9

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[4])
from _common import peak_resident
start = time.perf_counter()
from tinylora_edge import load_basis
from tinylora_edge.exporters.onnx.bake import bake

basis = load_basis(sys.argv[2])
imported = time.perf_counter() - start
start = time.perf_counter()
report = bake(sys.argv[1], basis, sys.argv[3])
found = {"seconds": time.perf_counter() - start, "seconds_to_import": imported, "peak_bytes": peak_resident()}
print(json.dumps(found | {"nodes": report.nodes, "added": report.added, "agreement": report.agreement}))
"""


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    layers: int
    hidden: int
    middle: int
    vocabulary: int

    @classmethod
    def scaled(cls, scale: float) -> Shape:
        """That of a 7B model, every size times `scale`: bytes fall with its cube, about."""

        def width(full: int) -> int:
            return max(BLOCK, round(full * scale / BLOCK) * BLOCK)

        return cls(max(2, round(32 * scale)), width(4096), width(11008), width(32000))

    @property
    def linears(self) -> dict[str, tuple[tuple[str, ...], int, int]]:
        """Node's name -> kinds of module in it, N, K."""
        hidden, middle = self.hidden, self.middle
        return {
            "attn/qkv_proj": (("attn_q", "attn_k", "attn_v"), 3 * hidden, hidden),
            "attn/o_proj": (("attn_output",), hidden, hidden),
            "mlp/gate_proj": (("ffn_gate",), middle, hidden),
            "mlp/up_proj": (("ffn_up",), middle, hidden),
            "mlp/down_proj": (("ffn_down",), hidden, middle),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the external data: a code of 4 bits a weight, a scale of 32 a block, and two tables."""
        weights = self.layers * sum(n * k for _, n, k in self.linears.values())
        return weights // 2 + weights // BLOCK * 4 + 2 * 4 * self.hidden * self.vocabulary


class External:
    """Writes initializers into a file of external data."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self.tensors: list[TensorProto] = []

    def add(self, name: str, array: NDArray[Any]) -> str:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._path.name, "offset": self._file.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(np.ascontiguousarray(array).data)
        self.tensors.append(tensor)
        return name

    def close(self) -> None:
        """Bytes are on the disk: what is timed next does not wait for them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks [N, K / 32, 16] and scales [N, K / 32] of symmetric 4 bits."""
    n_out, n_in = weight.shape
    blocks = weight.reshape(n_out, n_in // BLOCK, BLOCK)
    scales = np.abs(blocks).max(axis=-1) / np.float32(7)
    codes = np.clip(np.rint(blocks / scales[..., None]) + 8, 0, 15).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales


def draw(shape: Shape) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """Node's name -> blocks and scales; kind -> A and B that its weight was made of."""
    random = np.random.default_rng(0)
    stored: dict[str, Any] = {}
    factors: dict[str, tuple[Any, Any]] = {}
    for name, (kinds, n_out, n_in) in shape.linears.items():
        parts = []
        for kind in kinds:
            rows = n_out // len(kinds)
            left = np.linalg.qr(random.standard_normal((rows, 2)))[0]
            right = np.linalg.qr(random.standard_normal((n_in, 2)))[0]
            a, b = right.T.astype(np.float32), (left * [3.0, 2.0]).astype(np.float32)
            factors[kind] = a, b
            parts.append(quantize(b @ a))
        stored[name] = [np.concatenate(several) for several in zip(*parts, strict=True)]
    return stored, factors


def write_model(shape: Shape, folder: Path) -> None:
    """Write `graph/model.onnx`, its data, and `basis.gguf`."""
    stored, factors = draw(shape)
    graph = folder / "graph"
    graph.mkdir()
    data = External(graph / "model.onnx.data")
    nodes, modules, a, b = [], [], [], []
    table = np.zeros((shape.vocabulary, shape.hidden), np.float32)
    nodes.append(
        helper.make_node("Gather", [data.add("embedding", table), "input_ids"], ["h.0"], name="embed")
    )
    for layer in range(shape.layers):
        results: dict[str, str] = {}
        for name, (kinds, n_out, n_in) in shape.linears.items():
            full = f"/model/layers.{layer}/{name}/MatMul_Q4"
            source = {"attn/o_proj": f"q.{layer}", "mlp/down_proj": results.get("mlp/up_proj")}.get(name)
            blocks, scales = stored[name]
            inputs = [
                source or f"h.{layer}",
                data.add(f"{full}.blocks", blocks),
                data.add(f"{full}.scales", scales),
            ]
            results[name] = f"h.{layer + 1}" if name == "mlp/down_proj" else f"{full}.out"
            sizes = {"K": n_in, "N": n_out, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            nodes.append(
                helper.make_node(
                    "MatMulNBits", inputs, [results[name]], name=full, domain="com.microsoft", **sizes
                )
            )
            if name == "attn/qkv_proj":
                pieces = [f"{letter}.{layer}" for letter in "qkv"]
                nodes.append(helper.make_node("Split", [results[name]], pieces, axis=-1, num_outputs=3))
            for kind in kinds:
                modules.append(f"blk.{layer}.{kind}.weight")
                a.append(factors[kind][0])
                b.append(factors[kind][1])
    head = data.add("head", table.T)
    nodes.append(helper.make_node("MatMul", [f"h.{shape.layers}", head], ["logits"], name="/lm_head/MatMul"))
    data.close()
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    sizes_of_logits = ["batch", "sequence", shape.vocabulary]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes_of_logits)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph(nodes, "decoder", [ids], [logits], data.tensors)
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), graph / "model.onnx")
    tying = tie(modules, "tiled", GROUPS)
    basis = Basis(
        architecture="llama", modules=tuple(modules), rank=2, u=1, groups=GROUPS, seed=42,
        factorization="left", scheme="tiled", tying=tying, a=tuple(a), b=tuple(b),
    )  # fmt: skip
    save_basis(basis, folder / "basis.gguf")


def baking(folder: Path, results: list[dict[str, Any]]) -> Callable[[], float]:
    """Seconds of a baking; what its process said goes into `results`."""

    def run() -> float:
        output = folder / "baked"
        output.mkdir()
        paths = [folder / "graph", folder / "basis.gguf", output, Path(__file__).parent]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"baking failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        sizes = [(place / "model.onnx.data").stat().st_size for place in (paths[0], output)]
        if sizes[0] != sizes[1]:
            raise SystemExit(f"baking copied {sizes[1]:,} of {sizes[0]:,} bytes")
        results.append(found)
        shutil.rmtree(output)
        return float(found["seconds"])

    return run


def copying(folder: Path) -> Callable[[], float]:
    """Seconds until a copy of the data is on the disk."""

    def run() -> float:
        target = folder / "copy"
        source = folder / "graph" / "model.onnx.data"
        with bench.stopwatch() as watch, source.open("rb") as file, target.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 24)
            out.flush()
            os.fsync(out.fileno())
        target.unlink()
        return watch.seconds

    return run


def main() -> None:
    arguments = bench.parser(__doc__, rounds=3)
    arguments.add_argument(
        "--scale", type=float, default=1.0, help="of the model's sizes; 1 needs 10.3 GB of free disk (1)"
    )
    arguments.add_argument("--folder", type=Path, help="where to write (the system's temporary folder)")
    options = arguments.parse_args()
    if not 0 < options.scale <= 8:
        arguments.error(f"--scale {options.scale}: choose a number above 0, up to 8")
    shape = Shape.scaled(options.scale)
    where = options.folder or Path(tempfile.gettempdir())
    # Data, one copy, and the graph with its factors, twice.
    needed, free = 2 * shape.nbytes + (shape.nbytes >> 6) + (1 << 24), shutil.disk_usage(where).free
    if free < needed:
        raise SystemExit(
            f"{where} has {free / 1e9:.1f} GB free, but scale {options.scale:g} needs {needed / 1e9:.1f} GB: "
            "choose another --folder, or a smaller --scale"
        )
    report = bench.Report("onnx_bake", options.json)
    report.record |= {"scale": options.scale, "shape": vars(shape), "data_bytes": shape.nbytes}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=where, prefix="tinylora-bake-") as name:
        folder = Path(name)
        write_model(shape, folder)
        written = (folder / "graph" / "model.onnx.data").stat().st_size
        report.say(f"{shape.layers} layers, {shape.hidden} wide: {written / 1e9:.2f} GB of external data")
        contestants = {BAKE: baking(folder, results), COPY: copying(folder)}
        times = bench.interleave(contestants, options.rounds, warmup=0)
    report.record |= {"data_bytes": written, "bakes": results}
    report.record["seconds"] = {name: bench.summarize(values) for name, values in times.items()}
    peak = max(found["peak_bytes"] for found in results)
    pairs = [own / other for own, other in zip(times[BAKE], times[COPY], strict=True)]
    report.record["bake_over_copy"] = float(np.median(pairs))
    rows = [
        [name, f"{r['min']:.2f}", f"{r['median']:.2f}", f"{max(times[name]):.2f}"]
        for name, r in report.record["seconds"].items()
    ]
    report.say(bench.table(["seconds", "best", "median", "worst"], rows))
    report.say(f"baking / copying, paired: {report.record['bake_over_copy']:.2f}")
    report.target("seconds to bake, median", report.record["seconds"][BAKE]["median"], "<=", MAX_SECONDS)
    report.target("peak resident memory, bytes", peak, "<=", MAX_BYTES)
    report.finish()


if __name__ == "__main__":
    main()
