"""What the weights of a graph cost: SmolLM2's Q4_1 file in llama.cpp, beside graphs in fp32, int8 and int4.

int8 keeps the weights of the GGUF; int4 rounds them a second time, as onnxruntime-genai's builder does. For
each form: bytes; KL of the base, exact, on answers to general prompts, from llama.cpp and from the graph in
fp32; what a vector gains on a task, in nats a token of given answers and in reward; time of a token by turns.

    python benchmarks/onnx_weights.py --vector v.bin --task snips --json results/onnx_weights.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import smollm2
from numpy.typing import NDArray

from tinylora_edge import MicroVector, Policy, runtime
from tinylora_edge.eval.drift import PROMPTS, TOKENS, measure_parity
from tinylora_edge.eval.measure import evaluate
from tinylora_edge.exporters import export_onnx
from tinylora_edge.runtime.engine import Part
from tinylora_edge.tasks import Task, load_task
from tinylora_edge.tasks.load import load_general

GGUF, FLOAT = "llama.cpp, Q4_1", "fp32"
PRECISIONS = FLOAT, "int8", "int4"


def opened(bundles: dict[str, Path], form: str, threads: int) -> Any:
    """Load a form of the model."""
    engine = "llama" if form == GGUF else "onnx"
    return runtime.load(bundles[FLOAT if form == GGUF else form], engine=engine, n_ctx=512, n_threads=threads)


def distributions(
    llm: Any, texts: Sequence[tuple[list[int], list[int]]], threads: int
) -> NDArray[np.float32]:
    """Natural logarithms of the next token's probabilities wherever a token of an answer stands."""
    longest, rows = max(len(prompt) + len(answer) for prompt, answer in texts), []
    engine = llm.engine(rows=2, n_ctx=longest, n_threads=threads)
    for prompt, answer in texts:
        logits = np.array(engine.evaluate([Part(0, [*prompt, *answer[:-1]], len(answer))]), np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        rows.append(np.float32(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))))
        engine.cut(0, 0)
    engine.close()
    return np.concatenate(rows)


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """KL(p || q) in nats, the mean over places."""
    return float((np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64).mean())


def gained(
    llm: Any, task: Task, answers: list[list[int]], vector: MicroVector, threads: int
) -> dict[str, Any]:
    """What a vector brings on held-out prompts: nats a token of given answers, and its own greedy answers."""
    samples = task.held_out
    with llm.batch(samples, task.max_tokens, n_threads=threads) as batch:
        encoded = batch.encode(samples), [[answer] for answer in answers]
        base, own = (
            -float(np.concatenate([row for (row,) in each]).mean())
            for each in batch.score_each([None, vector], *encoded)
        )
        found = evaluate(batch, task, vector)
    facts = {"answers": found.answers[:3], "empty": sum(not text.strip() for text in found.answers)}
    partial = {} if found.partial is None else {"partial": found.partial}
    return {"base_nats": base, "vector_nats": own, "n": found.n, "reward": found.mean, **partial, **facts}


def decoding(llm: Any, tokens: list[int]) -> Any:
    """Seconds a token, the first ones left out."""
    engine = llm.engine(rows=2, n_ctx=2 * len(tokens), n_threads=1)

    def run() -> float:
        engine.cut(0, 0)
        engine.evaluate([Part(0, tokens[:8])])
        with bench.stopwatch() as watch:
            for token in tokens[8:]:
                engine.evaluate([Part(0, [token])])
        return float(watch.seconds) / (len(tokens) - 8)

    return run


def main() -> None:
    arguments = bench.parser(__doc__, rounds=10)
    arguments.add_argument("--work", type=Path, help="a folder that keeps the bundles, of 0.9 GB")
    arguments.add_argument("--vector", type=Path, required=True, help="a frame")
    arguments.add_argument("--task", default="snips", help="of the vector (%(default)s)")
    arguments.add_argument("--held-out", type=int, default=32, help="its prompts (%(default)s)")
    arguments.add_argument("--max-tokens", type=int, default=64, help="of an answer (%(default)s)")
    options = arguments.parse_args()
    report, threads = bench.Report("onnx_weights", options.json), 2
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        bundles = {precision: work / f"b-{precision}" for precision in PRECISIONS}
        for precision, bundle in bundles.items():
            if not bundle.exists():
                export_onnx(smollm2(), bundle, precision=precision, with_gguf=True)
        measure(report, bundles, options, threads)
    report.finish()


def measure(report: bench.Report, bundles: dict[str, Path], options: Any, threads: int) -> None:
    task = load_task(options.task, held_out=options.held_out, max_tokens=options.max_tokens)
    general = load_general()[:PROMPTS]
    with closing(opened(bundles, GGUF, threads)) as llm:
        vector = Policy().check(options.vector.read_bytes(), llm.bases)
        answers = [llm.encode_answer(sample) for sample in task.held_out]
        with llm.batch(general, TOKENS, n_threads=threads) as batch:
            prompts = batch.encode(general)
            drawn = [each.tokens.tolist() for each in batch.generate(prompts, max_tokens=TOKENS)]
        texts = list(zip(prompts, drawn, strict=True))
    found: dict[str, dict[str, Any]] = {}
    logprobs: dict[str, NDArray[np.float32]] = {}
    for form in (GGUF, *PRECISIONS):
        with closing(opened(bundles, form, threads)) as llm:
            logprobs[form] = distributions(llm, texts, threads)
            found[form] = gained(llm, task, answers, vector, threads)
        graph = bundles[FLOAT] / "base.gguf" if form == GGUF else bundles[form] / "onnx" / "model.onnx.data"
        found[form]["bytes"] = graph.stat().st_size
        for other in (GGUF, FLOAT):
            if other in logprobs:
                found[form][f"kl_from_{other}"] = divergence(logprobs[other], logprobs[form])
        if form != GGUF:
            found[form]["alike"] = measure_parity(bundles[form], n_threads=threads)
        print(form, found[form], flush=True)
    loaded = {form: opened(bundles, form, 1) for form in PRECISIONS}
    tokens = np.random.default_rng(0).integers(1000, 40000, 32).tolist()
    times = bench.interleave({form: decoding(llm, tokens) for form, llm in loaded.items()}, options.rounds, 1)
    for form, values in times.items():
        pairs = [own / other for own, other in zip(values, times["int4"], strict=True)]
        found[form]["token_s"] = bench.summarize(values)
        found[form]["time_over_int4_paired"] = float(np.median(pairs))
    report.record["forms"] = found
    rows = [
        [
            form,
            f"{each['bytes'] / 1e6:.0f} MB",
            *(f"{each[key]:.4f}" if key in each else "" for key in (f"kl_from_{GGUF}", f"kl_from_{FLOAT}")),
            f"{each['base_nats']:.3f} to {each['vector_nats']:.3f}",
            f"{each.get('partial', each['reward']):.3f}",
            f"{each['empty']} of {each['n']}",
            f"{each['time_over_int4_paired']:.2f}" if "token_s" in each else "",
        ]
        for form, each in found.items()
    ]
    headers = ["", "bytes", "KL from the GGUF", "from fp32", "nats a token", "reward", "empty", "time"]
    report.say(bench.table(headers, rows))


if __name__ == "__main__":
    main()
