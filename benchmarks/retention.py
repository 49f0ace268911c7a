"""What of a gain measured in torch is left in llama.cpp on the deployed, quantized file.

Base and vectors answer the same held-out prompts greedily in both: in torch with the dequantized weights in
the given dtype, in llama.cpp with the deployed file. Without vectors one is trained first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import SCALES, export

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime.evaluation import evaluate
from tinylora_edge.runtime.llama.batch import batch_for, cores
from tinylora_edge.runtime.llama.prompts import decode, encode
from tinylora_edge.tasks import Task, load_task
from tinylora_edge.train import Loss, train
from tinylora_edge.train.adapter import Adapter
from tinylora_edge.train.batches import Sampled
from tinylora_edge.train.model import default_dtype, load_model
from tinylora_edge.train.rollouts import HFRollouts

Score = Callable[[MicroVector | None], float]


def scorers(bundle: Path, task: Task, dtype: str, stack: list[Any]) -> tuple[Score, Score]:
    """Return mean held-out reward of a vector in torch, and in llama.cpp."""
    threads = cores()
    llm = runtime.load(bundle, n_ctx=64, n_threads=threads)
    batch = batch_for(llm, task.held_out, task.max_tokens, n_threads=threads)
    model = load_model(bundle / "base.gguf", dtype)
    adapter = Adapter(model, llm.basis)
    stack += [llm, batch]
    judge = Sampled(
        task,
        HFRollouts(model, adapter, [llm.token_eos()]),
        encode=lambda sample: encode(llm, sample),
        decode=lambda tokens: decode(llm, tokens),
        each=1,
        loss=Loss(),
    )

    def in_torch(vector: MicroVector | None) -> float:
        v = vector or MicroVector.zeros(llm.basis)
        _, rewards = judge.draw(v.values, task.held_out, each=1, temperature=0.0, seed=(0,))
        return float(np.mean(rewards))

    return in_torch, lambda vector: evaluate(batch, task, vector).mean


def main() -> None:
    arguments = bench.parser(__doc__, rounds=1)
    arguments.add_argument("--bundle", type=Path, help="of the vectors; exported unless given")
    arguments.add_argument("--vectors", type=Path, nargs="+", default=[], metavar="FILE", help="frames")
    arguments.add_argument("--task", default="list-lookup", help="(%(default)s)")
    arguments.add_argument("--held-out", type=int, default=128, metavar="N", help="prompts (%(default)s)")
    arguments.add_argument("--dtype", help="of the weights in torch; what is fast here unless given")
    options = arguments.parse_args()
    options.dtype = options.dtype or default_dtype()
    report = bench.Report("retention", options.json)
    task = load_task(options.task, held_out=options.held_out)
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or export(Path(folder), SCALES)[0]
        files = options.vectors or [train(bundle, task, Path(folder) / "trained.bin").path]
        opened: list[Any] = []
        in_torch, in_llama = scorers(bundle, task, options.dtype, opened)
        vectors = [MicroVector.from_bytes(f.read_bytes(), opened[0].basis) for f in files]
        base = {"torch": in_torch(None), "llama.cpp": in_llama(None)}
        rows, kept = [["base", f"{base['torch']:.3f}", f"{base['llama.cpp']:.3f}", "", "", ""]], []
        results = []
        for file, vector in zip(files, vectors, strict=True):
            found = {"torch": in_torch(vector), "llama.cpp": in_llama(vector)}
            gains = {name: found[name] - base[name] for name in found}
            kept.append(gains["llama.cpp"] / gains["torch"] if gains["torch"] else float("nan"))
            cells = [f"{x:.3f}" for x in found.values()] + [f"{gain:+.3f}" for gain in gains.values()]
            rows.append([file.name, *cells, f"{kept[-1]:.2f}"])
            results.append({"vector": file.name, "scores": found, "gains": gains, "kept": kept[-1]})
        for engine in reversed(opened):
            engine.close()
    report.say(f"\n{task.name}, greedy, n = {options.held_out}, torch in {options.dtype}, mean reward")
    headers = ["", "torch", "llama.cpp", "gain, torch", "gain, llama.cpp", "kept"]
    report.say(bench.table(headers, rows))
    in_all = {name: sum(r["gains"][name] for r in results) for name in base}
    whole = in_all["llama.cpp"] / in_all["torch"] if in_all["torch"] else float("nan")
    report.target("gain kept, all vectors together", whole, ">=", 0.9)
    report.record |= {"base": base, "vectors": results, "kept": whole, "task": task.name}
    report.finish()


if __name__ == "__main__":
    main()
