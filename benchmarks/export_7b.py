"""What exporting a model of Qwen2.5-7B's shapes takes: seconds, memory, passes, residuals.

Writes such a checkpoint (random; 13 GB of bfloat16 safetensors, 4 GB of Q4_K and Q6_K as in a Q4_K_M file)
and exports it in processes of their own, each under a limit on its memory, by turns with a plain pass, which
reads the same tensors one after another and converts each to float32 as a whole. On one block of seven
matrices, PEFT's init (a full SVD each), `torch.svd_lowrank` and `scipy.sparse.linalg.svds` at the same
residual stand beside it.

Needs 18 GB of free disk at full size (--blocks 28 --scale 1), and memory for the page cache to hold the files
if the disk is not to be what is measured. Removes all that it wrote.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import _seven_b as seven_b
import torch
from factorization import RANK, TOLERANCE, Matrix, Triplets, residual, svd_lowrank, svds
from peft import TinyLoraConfig, get_peft_model
from threadpoolctl import threadpool_limits

from tinylora_edge.factorization import truncated_svd
from tinylora_edge.process import cores

MAX_BYTES, MAX_PASSES, MIN_SPEEDUP = 1.5e9, 6, 40

# Anonymous memory is what the process owns; pages of mapped files are the system's cache.
CHILD = """
import json, os, resource, sys, threading, time
from pathlib import Path

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, anonymous())

what, model, base, output, count, limit = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(count)])
start = time.perf_counter()
import numpy as np
from tinylora_edge.exporters.weights.hf import HFWeights
from tinylora_edge.exporters.weights.gguf import GGUFWeights
from tinylora_edge.exporters import Export, ExportSettings
imported = time.perf_counter() - start
resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
start = time.perf_counter()
found = {}
if what == "plain":
    gguf = GGUFWeights(Path(base))
    blocks = 1 + max(int(name.split(".")[1]) for name in gguf.modules)
    weights = gguf if model == base else HFWeights(Path(model), gguf.file.architecture, blocks)
    for module in gguf.modules:
        for matrix in weights.matrices(module):
            matrix.rows()
else:
    settings = ExportSettings(outputs=8)
    report = Export(model, output, base=base, settings=settings).run()
    quality = report.quality
    found = {"matrices": len(report.bases.factors.modules),
             "residual": quality["worst_residual"], "unconverged": len(quality["unconverged"]),
             "digest": report.bases.factors.digest}
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps(found | {"seconds": seconds, "seconds_to_import": imported, "anonymous_bytes": peak}))
"""


class Runner:
    """Runs exports and plain passes in processes of their own."""

    def __init__(self, folder: Path, hf: Path, base: Path) -> None:
        self._folder, self._hf, self._base = folder, hf, base
        self.found: dict[str, list[dict[str, Any]]] = {}

    def contestant(self, name: str, what: str, source: str, count: int) -> Callable[[], float]:
        def run() -> float:
            output = self._folder / "bundle"
            model = self._hf if source == "bf16" else self._base
            words = [what, model, self._base, output, count, int(MAX_BYTES)]
            command = [sys.executable, "-c", CHILD, *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed: {done.stderr}")
            shutil.rmtree(output, ignore_errors=True)
            self.found.setdefault(name, []).append(json.loads(done.stdout))
            return float(self.found[name][-1]["seconds"])

        return run


def cheapest(solve: Callable[[Matrix, float], Triplets], settings: list[float], matrix: Matrix) -> float:
    """Seconds of the first setting that reaches the residual; finding it is not counted."""
    seconds = 0.0
    for setting in settings:
        with bench.stopwatch() as watch:
            triplets = solve(matrix, setting)
        seconds = watch.seconds
        if residual(matrix, triplets) <= TOLERANCE:
            break
    return seconds


def one_block(shape: seven_b.Shape, with_peft: bool) -> dict[str, float]:
    """Seconds for the seven matrices of one block, in float32 in memory, every library with all cores."""
    weights = seven_b.drawn(shape, 0)
    torch.set_num_threads(cores())
    seconds = dict.fromkeys(("ours", "svds", "svd_lowrank"), 0.0)
    if with_peft:
        seconds["PEFT init"] = 0.0
    for matrix in weights.values():
        with bench.stopwatch() as watch, threadpool_limits(1, user_api="blas"):
            truncated_svd(matrix, RANK)
        seconds["ours"] += watch.seconds
        with threadpool_limits(cores(), user_api="blas"):
            seconds["svds"] += cheapest(svds, [1e-2, 1e-3, 1e-4, 1e-5], matrix)
            seconds["svd_lowrank"] += cheapest(svd_lowrank, [2, 4, 8, 16, 32], matrix)
        if with_peft:
            seconds["PEFT init"] += peft_init(matrix)
    return seconds


def peft_init(matrix: Matrix) -> float:
    """Seconds of PEFT's own init of one layer, torch with all cores."""
    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(matrix)
    model = torch.nn.Sequential(layer)
    start = time.perf_counter()
    get_peft_model(model, TinyLoraConfig(r=RANK, target_modules=["0"]))
    return time.perf_counter() - start


def main() -> None:
    parser = bench.parser(__doc__, rounds=3)
    parser.add_argument("--blocks", type=int, default=28, help="of the model (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of every width (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write (the system's temporary one)"
    )
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT's init out: minutes at full size")
    options = parser.parse_args()
    shape = seven_b.Shape.scaled(options.blocks, options.scale)
    folder = Path(tempfile.mkdtemp(prefix="tinylora-export-", dir=options.folder))
    try:
        free = shutil.disk_usage(folder).free
        if free < shape.nbytes * 1.05:
            raise SystemExit(
                f"{shape.nbytes / 1e9:.1f} GB are needed at {folder}, and {free / 1e9:.1f} GB free: "
                "lower --blocks or --scale, or name another --folder"
            )
        measure(bench.Report("export_7b", options.json), options, shape, folder)
    finally:
        shutil.rmtree(folder)


def measure(report: bench.Report, options: Any, shape: seven_b.Shape, folder: Path) -> None:
    hf, base = seven_b.write(shape, folder)
    sizes = {"bf16": sum(f.stat().st_size for f in hf.iterdir()), "Q4_K": base.stat().st_size}
    report.say(f"{shape.blocks} blocks, {shape.weights / 1e9:.2f} G weights; {sizes}")
    runner = Runner(folder, hf, base)
    names = {
        (what, source, count): f"{'plain pass' if what == 'plain' else 'export'}, {source}"
        + (f", {count} cores" if what == "export" else "")
        for source in ("bf16", "Q4_K")
        for what, count in (("plain", 1), ("export", 1), ("export", cores()))
    }
    contestants = {
        name: runner.contestant(name, what, source, count) for (what, source, count), name in names.items()
    }
    times = bench.interleave(contestants, options.rounds)
    found = {name: bench.summarize(values) for name, values in times.items()}
    rows = []
    for name, figures in found.items():
        last = runner.found[name][-1]
        peak = max(run["anonymous_bytes"] for run in runner.found[name])
        plain = found[f"plain pass, {name.split(', ')[1]}"]["median"]
        residual_ = f"{last['residual']:.1e}" if "residual" in last else ""
        rows.append([name, f"{figures['min']:.1f}", f"{figures['median']:.1f}",
                     f"{figures['median'] / plain:.2f}", f"{peak / 1e6:.0f}", residual_])  # fmt: skip
    report.say()
    headers = ["", "min s", "median s", "x plain pass", "anonymous MB", "residual"]
    report.say(bench.table(headers, rows))
    digests = {
        source: {run["digest"] for name, runs in runner.found.items() if source in name
                 for run in runs if "digest" in run}
        for source in sizes
    }  # fmt: skip
    assert all(len(found) == 1 for found in digests.values()), digests

    block = one_block(shape, not options.no_peft)
    report.say()
    table = [[name, f"{s:.2f}", f"{s / block['ours']:.1f}"] for name, s in block.items()]
    report.say(bench.table(["one block of seven, in memory", "s", "x ours"], table))

    report.record |= {"shape": shape.__dict__, "bytes": sizes, "seconds": found, "runs": runner.found}
    report.record |= {"one_block": block}
    report.say()
    all_cores = f"export, bf16, {cores()} cores"
    bf16, q4 = found[all_cores]["median"], found[f"export, Q4_K, {cores()} cores"]["median"]
    peaks = [run["anonymous_bytes"] for runs in runner.found.values() for run in runs if "digest" in run]
    report.target("anonymous memory of an export, bytes", max(peaks), "<=", MAX_BYTES)
    report.target(
        "export from bf16 / plain pass", bf16 / found["plain pass, bf16"]["median"], "<=", MAX_PASSES
    )
    report.target("export from Q4_K / from bf16", q4 / bf16, "<=", 1)
    if "PEFT init" in block:
        peft = block["PEFT init"] * shape.blocks
        report.target("PEFT's init of one block x blocks / export from bf16", peft / bf16, ">=", MIN_SPEEDUP)
    report.finish()


if __name__ == "__main__":
    main()
