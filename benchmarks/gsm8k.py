"""The paper's task with a small model: GRPO on GSM8K, and the share of test problems that are right.

    python recipes/problems.py train.jsonl --test test.jsonl -o gsm8k.jsonl
    python benchmarks/gsm8k.py BUNDLE gsm8k.jsonl --graph --arms base examples rank-8 numbers-13

`train.jsonl` and `test.jsonl` are of github.com/openai/grade-school-math (Cobbe et al. 2021; MIT). An arm is
`base`; `examples`, the base behind the best prompt that `find_prompt` finds; the file of a vector, `*.bin`;
`rank-K` and `numbers-N`, a vector that GRPO learns by the reward `number`. Answers have 256 tokens at
most, and are greedy where they are measured.

A run may take hours: Ctrl-C saves it, and the next call goes on. What the record has is not run again.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.eval.measure import Evaluation, compare, evaluate, find_prompt
from tinylora_edge.factors import read_shape
from tinylora_edge.formats.bundle import ONNX_NAME
from tinylora_edge.jsonio import read_json
from tinylora_edge.tasks import Task
from tinylora_edge.tasks.load import load_task
from tinylora_edge.train import Options, train

TOKENS = 256  # of an answer, at most
CHOSEN = 16  # training problems that choose the best vector, or the best examples
SHOWN = 8  # answers that a row of the record has
HOURS = 2  # to try prompts of examples
KEYS = "model", "arm", "method", "seed", "steps", "prompts", "n", "start"


def settings(options: argparse.Namespace, arm: str, seed: int) -> Options:
    kind, _, size = arm.partition("-")
    which: dict[str, Any] = {"rank": read_shape(size)} if kind == "rank" else {"numbers": int(size)}
    return Options(
        method=options.method,
        steps=options.steps,
        minutes=options.minutes,
        prompts=options.prompts,
        validation=CHOSEN,
        validate_every=20,
        checkpoint_every=1,
        workers=options.threads,
        evaluate=False,
        seed=seed,
        start=options.values,
        weights=str(load_bundle(options.bundle).base) if options.graph else None,
        **which,
    )


def learned(options: argparse.Namespace, task: Task, arm: str, seed: int) -> Path:
    """Return the file of a vector, which is trained unless it is there. SystemExit: it was interrupted."""
    began = time.monotonic()
    after = f"-after-{options.start.stem}" if options.start else ""
    name = f"{options.model}-{arm}-{options.method}-{options.steps}-s{seed}{after}.bin"
    output: Path = options.frames / name
    if not output.exists():

        def tell(row: dict[str, Any]) -> None:
            if "step" in row:
                figures = {name: row[name] for name in ("reward", "signal", "loss") if name in row}
                print(arm, row["step"], figures, f"{time.monotonic() - began:.0f} s", flush=True)

        resume = output.with_name(f"{output.name}.run").exists()
        chosen = settings(options, arm, seed)
        drawn_by = options.bundle / ONNX_NAME if options.graph else options.bundle
        outcome = train(drawn_by, task, output, options=chosen, resume=resume, report=tell)
        if outcome.path != output:
            raise SystemExit(f"{arm}: interrupted; call again to go on")
    return output


def answered(options: argparse.Namespace, task: Task, arm: str, frame: Path | None) -> dict[str, Any]:
    """Return the scores of the base, behind the best worked examples, or with a vector."""
    with closing(runtime.load(options.bundle, engine="llama", n_ctx=64)) as llm:
        threads, facts = {"n_threads": options.threads}, dict[str, Any]()
        preamble = vector = None
        if frame is not None:
            data = frame.read_bytes()
            vector = MicroVector.from_bytes(data, llm.bases)
            facts = {"bytes": len(data), "numbers": len(vector.values)}
        if arm == "examples":
            judged, _ = settings(options, "rank-2", 0).split(task)
            preamble, tried = find_prompt(llm, task, judged, seconds=HOURS * 3600, **threads)
            facts = {"tried": tried}
        prompts = [preamble.before(sample) for sample in task.held_out] if preamble else task.held_out
        with llm.batch(prompts, TOKENS, **threads) as batch:
            found = evaluate(batch, task, vector, preamble=preamble)
        facts["tokens"] = fmean(len(llm.chat_tokenizer.encode_plain(each)) for each in found.answers)
    return facts | {"scores": found.scores.tolist(), "answers": found.answers[:SHOWN]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("task", type=Path, help="a file that recipes/problems.py wrote")
    arguments.add_argument("--arms", nargs="+", default=["base", "rank-8"], help="see above")
    arguments.add_argument("--method", choices=["grpo", "sft"], default="grpo")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--minutes", type=float, help="of training, at most; what it found is measured")
    arguments.add_argument("--prompts", type=int, default=8, help="a step, of 8 answers each")
    arguments.add_argument("--start", type=Path, help="a vector that training starts from; else the base")
    arguments.add_argument(
        "--graph", action="store_true", help="draw with the graph of a bundle for both engines"
    )
    arguments.add_argument("--n", type=int, default=400, help="test problems")
    arguments.add_argument("--threads", type=int, help="by default a thread a core")
    arguments.add_argument("--frames", type=Path, default=Path("gsm8k"), help="a folder for vectors")
    arguments.add_argument("--study", type=Path, default=Path("gsm8k.jsonl"), help="the record")
    options = arguments.parse_args()
    options.frames.mkdir(exist_ok=True)
    options.values = None
    if options.start:
        read = MicroVector.from_bytes(options.start.read_bytes(), load_bundle(options.bundle).bases)
        options.values = tuple(read.values.tolist())
    options.model = options.bundle.name.removesuffix(".bundle")
    task = load_task(options.task, reward="number", max_tokens=TOKENS, held_out=options.n)
    rows = []
    for seed in options.seeds:
        for arm in options.arms:
            trained = arm.startswith(("rank-", "numbers-"))
            how = (options.method, seed, options.steps, options.prompts) if trained else (None,) * 4
            start = options.start.name if trained and options.start else None
            key = dict(zip(KEYS, (options.model, Path(arm).name, *how, options.n, start), strict=True))
            done = bench.read_study(options.study)
            row = next((row for row in done if {name: row.get(name) for name in KEYS} == key), None)
            if row is None:
                frame = learned(options, task, arm, seed) if trained else None
                began = time.monotonic()
                found = answered(options, task, arm, Path(arm) if arm.endswith(".bin") else frame)
                facts = {"commit": bench.commit(), "cpu": bench.environment()["cpu"]}
                if frame is not None:
                    facts["curve"] = read_json(frame.with_name(f"{frame.name}.json"))["curve"]
                row = key | found | facts | {"seconds": round(time.monotonic() - began)}
                bench.keep(options.study, row)
            rows.append(row)
    base = next((Evaluation(np.array(row["scores"]), []) for row in rows if row["arm"] == "base"), None)
    table = []
    for row in rows:
        own = Evaluation(np.array(row["scores"]), [])
        cells = [row["arm"], str(row["seed"]), f"{own.mean:.3f} +- {own.standard_error:.3f}"]
        if base:
            gap = compare(base, own)
            cells.append(f"{gap.difference:+.3f} +- {gap.standard_error:.3f} (p = {gap.p:.2g})")
        table.append(cells + [""] * (4 - len(cells)))
    print(bench.table(["arm", "seed", "right", "to the base"], table))


if __name__ == "__main__":
    main()
