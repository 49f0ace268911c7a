"""How fast a GRPO step is: ours against TRL's stock step, llama.cpp's rollouts against `generate`.

Both engines take the same prompts, samples, token limit, weights and dtype, each in a process of its own, by
turns; the first step of a process and the last, which validates, are not counted. Of rollouts all draw the
same number of completions of the same prompts under the same vector, the first draw not counted. And a
gradient of long answers, with attention by blocks and over the whole row, and with the other dtype.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import export, smollm2, tiled

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.process import cores
from tinylora_edge.projection import NUMBERS
from tinylora_edge.tasks import Completion, Sample, Task, load_task
from tinylora_edge.train import Options, train
from tinylora_edge.train.adapter import default_dtype

TASK, LR = "brevity", 5e-3
OURS, TRL = "ours", "TRL, stock"
DEPLOYED, GENERATE = "llama.cpp, Q4_1", "generate"
ENGINES, WAYS = (OURS, TRL), (DEPLOYED, GENERATE)
PROMPT, ANSWER = 100, 240  # tokens, about those of GSM8K
DTYPES, WHOLE = ("fp32", "bf16"), "over the row"


def one_engine(name: str, bundle: Path, options: argparse.Namespace) -> list[float]:
    """Train in this process; return the seconds of every step but the first and the last."""
    ends: list[float] = []

    def note(metrics: dict[str, Any]) -> None:
        if "step" in metrics and "event" not in metrics:
            ends.append(time.perf_counter())

    chosen = Options(
        method="grpo",
        steps=options.steps + 2,
        prompts=options.prompts,
        numbers=NUMBERS,
        lr=LR,
        validation=8,
        validate_every=1000,
        checkpoint_every=1000,
        samples=options.samples,
        dtype=options.dtype,
        evaluate=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "vector.bin"
        if name == TRL:
            from tinylora_edge.train.trl import train_trl

            train_trl(bundle, the_task(options), output, options=chosen, report=note)
        else:
            train(bundle, the_task(options), output, options=chosen, report=note)
    return np.diff(ends[:-1]).tolist()  # type: ignore[no-any-return]


def one_way(name: str, bundle: Path, options: argparse.Namespace) -> list[float]:
    """Draw in this process; return the seconds a token of every draw but the first."""
    import torch

    from tinylora_edge.train.adapter import Adapter, load_model

    torch.set_num_threads(cores())  # generate may have them all, as llama.cpp has
    task = the_task(options)
    samples = task.train[: options.prompts]
    with ExitStack() as stack:
        llm = stack.enter_context(closing(runtime.load(bundle, n_ctx=64)))
        prompts = [np.array(llm.encode(sample)[0], np.int32) for sample in samples]
        basis = tiled(llm.bases)
        vector = MicroVector.random(basis, 0.2, seed=1)
        if name == GENERATE:
            model = load_model(bundle / "base.gguf", options.dtype)
            stack.enter_context(Adapter(model, basis)).set(vector)
            longest = max(map(len, prompts))
            ids = torch.tensor([[0] * (longest - len(each)) + each.tolist() for each in prompts])
            mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
            stock: dict[str, Any] = {"attention_mask": mask, "do_sample": True, "top_k": 0}
            stock |= {"temperature": task.temperature, "num_return_sequences": options.samples}
            stock |= {"max_new_tokens": task.max_tokens, "eos_token_id": llm.token_eos()}
            stock |= {"pad_token_id": llm.token_eos()}

            def draw(seed: int) -> int:
                torch.manual_seed(seed)
                with torch.no_grad():
                    ended = model.generate(ids, **stock)[:, ids.shape[1] :] == llm.token_eos()
                lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, ended.shape[1])
                return int(lengths.sum())
        else:
            batch = stack.enter_context(llm.batch(samples, task.max_tokens))
            inputs = [prompt.tolist() for prompt in prompts]

            def draw(seed: int) -> int:
                drawn = batch.generate(
                    inputs,
                    vectors=vector,
                    samples=options.samples,
                    max_tokens=task.max_tokens,
                    temperature=task.temperature,
                    seed=(seed,),
                )
                return sum(len(each.tokens) for each in drawn)

        found = []
        for number in range(options.steps + 1):
            with bench.stopwatch() as watch:
                tokens = draw(number)
            found.append(watch.seconds / tokens)
    return found[1:]


def gradients(bundle: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of CPU of a gradient of one prompt's long answers, by attention and dtype."""
    from tinylora_edge.train.adapter import Adapter, load_model
    from tinylora_edge.train.learner import BY_BLOCKS, Group, Learner

    random = np.random.default_rng(0)
    prompt, *answers = (
        random.integers(1000, 40_000, size).astype(np.int32) for size in [PROMPT] + [ANSWER] * options.samples
    )
    group = Group(prompt, answers, random.standard_normal(options.samples).astype(np.float32))

    def run(learner: Learner, attention: str) -> float:
        learner.model.set_attn_implementation(attention)
        begun = time.process_time()
        learner.gradient([group])
        return time.process_time() - begun

    with ExitStack() as stack:
        learners = {}
        for kind in DTYPES:
            model = load_model(bundle / "base.gguf", kind)
            adapter = stack.enter_context(Adapter(model, tiled(load_bundle(bundle).bases)))
            learners[kind] = Learner(model, adapter, temperature=1.0)
            stack.callback(learners[kind].close)
        ways = {kind: partial(run, learner, BY_BLOCKS) for kind, learner in learners.items()}
        ways[WHOLE] = partial(run, learners[options.dtype], "sdpa")
        times = bench.interleave(ways, options.rounds)
    return {name: bench.summarize(values) for name, values in times.items()}


def the_task(options: argparse.Namespace) -> Task:
    """Return the task, with a reward that tells any two answers apart: no step is without signal."""
    return replace(load_task(TASK), max_tokens=options.tokens, reward=told_apart)


def told_apart(completion: Completion, sample: Sample) -> float:
    return zlib.crc32(completion.text.encode()) / 2**32


def by_turns(names: Sequence[str], bundle: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run each contestant in processes of its own, as often as there are rounds."""
    times: dict[str, list[float]] = {name: [] for name in names}
    size = [
        f"--{name}={getattr(options, name)}" for name in ("steps", "prompts", "samples", "tokens", "dtype")
    ]
    for number in range(options.rounds):
        for name in names if number % 2 else reversed(names):
            command = [sys.executable, __file__, "--only", name, "--bundle", str(bundle), *size]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            times[name] += json.loads(done.stdout.splitlines()[-1])
    return {name: bench.summarize(values) for name, values in times.items()}


def main() -> None:
    arguments = bench.parser(__doc__, rounds=2)
    arguments.add_argument("--steps", type=int, default=4, help="counted a process (%(default)s)")
    arguments.add_argument("--prompts", type=int, default=8, help="a step (%(default)s)")
    arguments.add_argument("--samples", type=int, default=8, help="a prompt (%(default)s)")
    longest = load_task(TASK).max_tokens
    arguments.add_argument("--tokens", type=int, default=longest, help="a sample, at most (%(default)s)")
    arguments.add_argument("--dtype", help="of the weights that learn; what is fast here unless given")
    arguments.add_argument("--only", choices=(*ENGINES, *WAYS), help=argparse.SUPPRESS)
    arguments.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.only:
        measure = one_engine if options.only in ENGINES else one_way
        print(json.dumps(measure(options.only, options.bundle, options)))
        return
    options.dtype = options.dtype or default_dtype()
    report = bench.Report("grpo", options.json)
    with tempfile.TemporaryDirectory() as name:
        bundle, _ = export(Path(name))
        speeds = by_turns(WAYS, bundle, options)
        steps = by_turns(ENGINES, bundle, options)
        learned = gradients(bundle, options)
    stock = speeds[GENERATE]["median"]
    headers = ["rollouts", "best tok/s", "median tok/s", "x generate"]
    rows = [
        [n, f"{1 / r['min']:.0f}", f"{1 / r['median']:.0f}", f"{stock / r['median']:.2f}"]
        for n, r in speeds.items()
    ]
    report.say(
        f"\n{options.prompts} prompts x {options.samples} samples of {smollm2().name}, task {TASK}, at "
        f"most {options.tokens} tokens"
    )
    report.say(bench.table(headers, rows))
    rows = [[n, f"{r['min']:.2f}", f"{r['median']:.2f}", f"{r['rounds']}"] for n, r in steps.items()]
    report.say()
    report.say(bench.table([f"step, {options.dtype}", "best s", "median s", "steps"], rows))
    rows = [[n, f"{r['min']:.1f}", f"{r['median']:.1f}", f"{r['rounds']}"] for n, r in learned.items()]
    report.say()
    report.say(bench.table([f"gradient, answers of {ANSWER}", "best s", "median s", "rounds"], rows))
    report.say()
    report.target("rollouts: llama.cpp / generate", stock / speeds[DEPLOYED]["median"], ">=", 2)
    report.target("step: TRL / ours", steps[TRL]["median"] / steps[OURS]["median"], ">=", 4)
    own, other = (learned[kind]["median"] for kind in sorted(DTYPES, key=options.dtype.__ne__))
    report.target("gradient: row / blocks", learned[WHOLE]["median"] / own, ">=", 1.3)
    report.target("gradient: the other dtype / this one", other / own, ">=", 1)
    report.record |= {
        "tokens": options.tokens,
        "rollouts": speeds,
        "steps": steps,
        "gradients": learned,
        "dtype": options.dtype,
    }
    report.finish()


if __name__ == "__main__":
    main()
