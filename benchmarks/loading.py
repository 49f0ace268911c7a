"""How long transformers takes to load a GGUF file to train on, with `read_once` and without.

By turns in one process, on a core's time. The weights that come out are compared too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from io import StringIO

import _common as bench  # first: it sets what libraries read when loaded
import torch
import transformers
from _subjects import smollm2

from tinylora_edge.formats.gguf_transformers import read_once

OURS, PLAIN = "read once", "transformers alone"


def main() -> None:
    options = bench.parser(__doc__, rounds=3).parse_args()
    report = bench.Report("loading", options.json)
    torch.set_num_threads(1)
    path, sums = smollm2(), dict[str, list[float]]()
    location = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}

    def contestant(name: str, block: Callable[[], AbstractContextManager[None]]) -> Callable[[], float]:
        def load() -> float:
            began = time.process_time()
            with block(), redirect_stderr(StringIO()):  # its bars
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    **location,
                    dtype=torch.float32,
                    quantization_config=transformers.GgufConfig(dequantize=True),
                )
            spent = time.process_time() - began
            sums[name] = [float(values.double().sum()) for values in model.parameters()]
            return spent

        return load

    ways = {OURS: contestant(OURS, read_once), PLAIN: contestant(PLAIN, nullcontext)}
    found = {name: bench.summarize(times) for name, times in bench.interleave(ways, options.rounds).items()}
    if sums[OURS] != sums[PLAIN]:
        raise SystemExit("the two did not load the same weights")
    rows = [[name, f"{times['min']:.1f}", f"{times['median']:.1f}"] for name, times in found.items()]
    report.say(bench.table([f"{path.name}, core seconds", "best", "median"], rows))
    report.target(f"{PLAIN} / {OURS}", found[PLAIN]["median"] / found[OURS]["median"], ">=", 2)
    report.record |= {"core_seconds": found}
    report.finish()


if __name__ == "__main__":
    main()
