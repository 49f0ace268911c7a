"""How fast a GRPO step is: ours against TRL's stock step, llama.cpp's rollouts against `generate`.

Both engines take the same prompts, samples, token limit, weights and dtype, each in a process of its own, by
turns; the first step of a process and the last, which validates, are not counted. Of rollouts all draw the
same number of completions of the same prompts under the same vector.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import SCALES, export, smollm2

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.llama import TinyLoraLlama
from tinylora_edge.runtime.prompts import encode
from tinylora_edge.runtime.requantize import bf16_is_faster, write_bf16
from tinylora_edge.tasks import load_task
from tinylora_edge.train import Options, Settings, train

TASK, LR = "brevity", 5e-3
OURS, TRL = "ours", "TRL, stock"
DEPLOYED, COPY, GENERATE = "llama.cpp, Q4_1", "llama.cpp, BF16 copy", "generate"


def one_engine(name: str, bundle: str, options: argparse.Namespace) -> None:
    """Train in this process; print the seconds of every step but the first and the last as JSON."""
    ends: list[float] = []

    def note(metrics: dict[str, Any]) -> None:
        if "step" in metrics and "event" not in metrics:
            ends.append(time.perf_counter())

    settings = Settings(
        steps=options.steps + 2,
        prompts=options.prompts,
        lr=LR,
        validation=8,
        validate_every=1000,
        checkpoint_every=1000,
    )
    chosen = Options(settings=settings, samples=options.samples, dtype=options.dtype, evaluate=False)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "vector.bin"
        if name == TRL:
            from tinylora_edge.train.trl import train_trl

            train_trl(bundle, load_task(TASK), output, options=chosen, report=note)
        else:
            train(bundle, load_task(TASK), output, options=chosen, report=note)
    print(json.dumps(np.diff(ends[:-1]).tolist()))


def engines(bundle: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of both, by turns."""
    times: dict[str, list[float]] = {OURS: [], TRL: []}
    size = [f"--{name}={getattr(options, name)}" for name in ("steps", "prompts", "samples", "dtype")]
    for number in range(options.rounds):
        for name in (OURS, TRL) if number % 2 else (TRL, OURS):
            command = [sys.executable, __file__, "--only", name, "--bundle", str(bundle), *size]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            times[name] += json.loads(done.stdout.splitlines()[-1])
    return times


def rollouts(bundle: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of each way to draw, by turns."""
    import torch

    from tinylora_edge.train._model import load_model
    from tinylora_edge.train._output import cores
    from tinylora_edge.train.adapter import Adapter
    from tinylora_edge.train.rollouts import HFRollouts, LlamaRollouts, Rollouts

    threads = cores()
    torch.set_num_threads(threads)  # generate may have them all, as llama.cpp has
    task = load_task(TASK)
    copy = folder / "bf16.gguf"
    write_bf16(bundle / "base.gguf", copy)
    with closing(runtime.load(bundle, n_ctx=64, n_threads=threads)) as deployed:
        prompts = [encode(deployed, sample.prompt) for sample in task.train[: options.prompts]]
        engine: dict[str, Any] = {"n_ctx": 64, "n_threads": threads, "verbose": False}
        other = TinyLoraLlama(str(copy), basis=deployed.basis, **engine)
        room = {"sequences": 32, "n_ctx": 4096, "n_threads": threads}
        model = load_model(bundle / "base.gguf", options.dtype)
        with (
            closing(other),
            Batch(deployed, **room) as first,
            Batch(other, **room) as second,
            Adapter(model, deployed.basis) as adapter,
        ):
            vector = MicroVector.random(deployed.basis, 0.2, seed=1)
            ways: dict[str, Rollouts] = {
                DEPLOYED: LlamaRollouts(first),
                COPY: LlamaRollouts(second),
                GENERATE: HFRollouts(model, adapter, [deployed.token_eos()]),
            }
            counts: dict[str, list[int]] = {name: [] for name in ways}

            def contestant(name: str) -> Any:
                def run() -> float:
                    with bench.stopwatch() as watch:
                        groups = ways[name].draw(
                            vector,
                            prompts,
                            samples=options.samples,
                            max_tokens=task.max_tokens,
                            temperature=task.temperature,
                            seed=(len(counts[name]),),
                        )
                    counts[name].append(sum(len(r.tokens) for group in groups for r in group))
                    return watch.seconds / counts[name][-1]

                return run

            times = bench.interleave({name: contestant(name) for name in ways}, 3 * options.rounds)
    return {name: bench.summarize(values) for name, values in times.items()}


def main() -> None:
    arguments = bench.parser(__doc__, rounds=2)
    arguments.add_argument("--steps", type=int, default=4, help="counted a process (%(default)s)")
    arguments.add_argument("--prompts", type=int, default=8, help="a step (%(default)s)")
    arguments.add_argument("--samples", type=int, default=8, help="a prompt (%(default)s)")
    arguments.add_argument("--dtype", default="bf16", help="of the weights that learn (%(default)s)")
    arguments.add_argument("--only", choices=(OURS, TRL), help=argparse.SUPPRESS)
    arguments.add_argument("--bundle", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.only:
        one_engine(options.only, options.bundle, options)
        return
    report = bench.Report("grpo", options.json)
    with tempfile.TemporaryDirectory() as name:
        bundle, _ = export(Path(name), SCALES)
        speeds = rollouts(bundle, Path(name), options)
        steps = {key: bench.summarize(values) for key, values in engines(bundle, options).items()}
    stock = speeds[GENERATE]["median"]
    headers = ["rollouts", "best tok/s", "median tok/s", "x generate"]
    rows = [
        [n, f"{1 / r['min']:.0f}", f"{1 / r['median']:.0f}", f"{stock / r['median']:.2f}"]
        for n, r in speeds.items()
    ]
    report.say(f"\n{options.prompts} prompts x {options.samples} samples of {smollm2().name}, task {TASK}")
    report.say(bench.table(headers, rows))
    rows = [[n, f"{r['min']:.2f}", f"{r['median']:.2f}", f"{r['rounds']}"] for n, r in steps.items()]
    report.say()
    report.say(bench.table([f"step, {options.dtype}", "best s", "median s", "steps"], rows))
    drawn = COPY if bf16_is_faster() else DEPLOYED
    report.say(f"\nours draws here by default with {drawn}")
    report.target(f"rollouts: {drawn} / generate", stock / speeds[drawn]["median"], ">=", 2)
    report.target("step: TRL / ours", steps[TRL]["median"] / steps[OURS]["median"], ">=", 4)
    report.record |= {"rollouts": speeds, "steps": steps, "drawn_with": drawn, "dtype": options.dtype}
    report.finish()


if __name__ == "__main__":
    main()
