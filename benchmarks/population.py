"""Many sequences, many vectors at once: against one at a time, in both engines; and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _subjects import NORM, export, tiled

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime import RewardLearner, TuneSettings
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.tasks import load_task

SEQUENCES = 32
VECTORS, PROMPTS = 8, 4  # of a population in ONNX Runtime: 32 rows
TOKENS = 24


def llama(bundle: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of 32 sequences at once over those of one at a time, both with every core."""
    task = load_task("brevity")
    with closing(runtime.load(bundle, engine="llama", n_ctx=256)) as llm:
        vector = MicroVector.random(tiled(llm.bases), NORM, seed=1)
        llm.swap(vector)
        prompts = [llm.encode(sample)[0] for sample in task.train[:SEQUENCES]]
        longest = max(map(len, prompts)) + TOKENS
        with Batch(llm, n_ctx_seq=longest, sequences=SEQUENCES) as batch:

            def together() -> float:
                """Seconds a token."""
                with bench.stopwatch() as watch:
                    options = {"max_tokens": TOKENS, "temperature": 0.7, "seed": 1}
                    found = batch.generate(prompts, vectors=vector, **options)
                return watch.seconds / sum(len(g.tokens) for g in found)

            def single() -> float:
                """The same by `generate`, four prompts of them: prompts evaluated as the engine does."""
                count = 0
                with bench.stopwatch() as watch:
                    for prompt in prompts[:4]:
                        for _, token in zip(range(TOKENS), llm.generate(prompt, temp=0.7), strict=False):
                            count += 1
                            if token == llm.token_eos():
                                break
                return watch.seconds / count

            return bench.interleave({"one at a time": single, "32 at once": together}, rounds)


def onnx(bundle: Path, rounds: int) -> dict[str, Any]:
    """Seconds for the answers of 8 vectors to 4 prompts: in one batch, and one vector after another."""

    task = load_task("brevity")
    samples = task.train[:PROMPTS]
    with runtime.load(bundle, engine="onnx") as llm:
        vectors = [MicroVector.random(tiled(llm.bases), NORM, seed=seed) for seed in range(VECTORS)]
        batch = llm.batch(samples, TOKENS, sequences=VECTORS * PROMPTS)

        def timed(run: Callable[[], Any]) -> Callable[[], float]:
            def measure() -> float:
                with bench.stopwatch() as watch:
                    run()
                return watch.seconds

            return measure

        contestants = {
            "one vector after another": timed(
                lambda: [batch.answer_each([v], samples, max_tokens=TOKENS) for v in vectors]
            ),
            "population in one batch": timed(lambda: batch.answer_each(vectors, samples, max_tokens=TOKENS)),
        }
        return bench.interleave(contestants, rounds)


def peak(bundle: str, what: str) -> int:
    """Peak resident bytes of this process when it generates, or tunes, with 32 sequences."""
    task = load_task("brevity")
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llm:
        if what == "generate":
            with llm.batch(task.train, task.max_tokens, sequences=SEQUENCES, n_threads=None) as batch:
                batch.answer_each([None], task.train[:SEQUENCES], max_tokens=task.max_tokens)
        else:
            settings = TuneSettings(held_back=16, check_every=1)
            tuning = RewardLearner(
                llm,
                task.train,
                task.reward,
                max_tokens=task.max_tokens,
                settings=settings,
                report=lambda figures: "reward" in figures and tuning.stop(),
            )
            tuning.run("1h")
    return bench.peak_resident()


def memory(bundle: Path) -> dict[str, int]:
    found = {}
    for what in ("generate", "tune"):
        command = [sys.executable, __file__, "--peak", what, str(bundle)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[what] = int(done.stdout)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[3], sys.argv[2]))
        return
    arguments = bench.parser(__doc__, rounds=5)
    arguments.add_argument("--engines", nargs="+", choices=("llama", "onnx"), default=["llama", "onnx"])
    arguments.add_argument("--weights", nargs="+", default=["Q4_1"], help="of the base (%(default)s)")
    options = arguments.parse_args()
    report = bench.Report("population", options.json)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if "llama" in options.engines:
            every = dict.fromkeys(["Q4_1", *options.weights])
            bundles = {weights: export(Path(folder), weights)[0] for weights in every}
            for weights in options.weights:
                title = f"llama.cpp, {weights}, seconds a token"
                figures = show(report, f"llama {weights}", title, llama(bundles[weights], options.rounds))
                ratio = figures["one at a time"]["median"] / figures["32 at once"]["median"]
                what = f"llama.cpp, {weights}: tokens/s of 32 sequences at once over one at a time"
                report.target(what, ratio, ">=", 3)
            held = memory(bundles["Q4_1"])
            report.record["memory"] = held
            report.say(
                f"peak resident memory: {json.dumps({k: f'{v / 1e6:.0f} MB' for k, v in held.items()})}"
            )
            target = "memory while tuning over plain generation of as many sequences"
            report.target(target, held["tune"] / held["generate"], "<=", 1.3)
        if "onnx" in options.engines:
            from _subjects import smollm2

            from tinylora_edge.exporters import export_onnx

            baked = export_onnx(smollm2(), Path(folder) / "onnx", precision="fp32").output
            title = "ONNX Runtime, 8 vectors x 4 prompts, seconds"
            figures = show(report, "onnx", title, onnx(baked, options.rounds))
            ratio = (
                figures["one vector after another"]["median"] / figures["population in one batch"]["median"]
            )
            report.target("ONNX: rollouts/s of a population in one batch over one by one", ratio, ">=", 1.5)
    report.record["seconds"] = time.monotonic() - began
    report.finish()


def show(report: bench.Report, key: str, title: str, times: dict[str, list[float]]) -> dict[str, Any]:
    figures = {name: bench.summarize(values) for name, values in times.items()}
    report.record[key] = figures
    rows = [[name, *(f"{f[k]:.4g}" for k in ("min", "median", "p95"))] for name, f in figures.items()]
    report.say(bench.table([title, "min", "median", "p95"], rows))
    return figures


if __name__ == "__main__":
    main()
