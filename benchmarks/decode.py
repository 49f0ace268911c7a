"""How fast a personalized model decodes, compared with its base and with stock LoRAs of the same shapes.

Every contestant evaluates the same token ids, one at a time, after the same prompt, so that all do the same
work. All load the base unmapped, as `llama_cpp.Llama` does for a `lora_path`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import llama_cpp
import numpy as np
from _subjects import export, frames, smollm2, write_stock_lora

from tinylora_edge import runtime

RANKS = (2, 4, 8)
BASE = "base"


class Subject:
    """A loaded model that decodes a fixed list of tokens."""

    def __init__(self, llm: llama_cpp.Llama, tokens: list[int], prompt: int) -> None:
        self._llm = llm
        self._prompt, self._tokens = tokens[:prompt], tokens[prompt:]

    def __call__(self) -> float:
        """Return the seconds of a token, without the prompt."""
        self._llm.reset()
        self._llm.eval(self._prompt)
        with bench.stopwatch() as watch:
            for token in self._tokens:
                self._llm.eval([token])
        return watch.seconds / len(self._tokens)

    def close(self) -> None:
        self._llm.close()


def makers(folder: Path) -> dict[str, Callable[[int], llama_cpp.Llama]]:
    bundle, bases = export(folder)
    base = str(smollm2())

    def options(threads: int) -> dict[str, int | bool]:
        return {"n_threads": threads, "n_threads_batch": threads, "use_mmap": False, "verbose": False}

    made: dict[str, Callable[[int], llama_cpp.Llama]] = {}
    made[BASE] = lambda threads: llama_cpp.Llama(base, **options(threads))
    for rank in RANKS:
        basis, lora = bases.basis(rank=rank), str(folder / f"stock-{rank}.gguf")
        (frame,) = frames(basis, 1)
        write_stock_lora(Path(lora), basis)
        made[f"ours, rank {rank}"] = lambda threads, v=frame: runtime.load(bundle, v, **options(threads))
        made[f"stock, rank {rank}"] = lambda threads, path=lora: llama_cpp.Llama(
            base, lora_path=path, **options(threads)
        )
    return made


def show(report: bench.Report, times: dict[str, list[float]], threads: int) -> dict[str, dict[str, float]]:
    results = {name: bench.summarize(values) for name, values in times.items()}
    rows = []
    for name, r in results.items():
        r["tokens_per_second"] = 1 / r["median"]
        # The ratios are within a round: what slows the machine for a while falls on both contestants.
        for over in (BASE, name.replace("ours", "stock")):
            pairs = [own / other for own, other in zip(times[name], times[over], strict=True)]
            r["over_base" if over == BASE else "over_stock"] = float(np.median(pairs))
        rows.append(
            [name, *(f"{1e3 * r[key]:.2f}" for key in ("min", "median"))]
            + [f"{r[key]:.3f}" if key in r else "" for key in ("over_base", "over_stock")]
        )
    report.say(f"\n{threads} threads")
    report.say(bench.table(["", "best ms", "median ms", "x base", "x stock"], rows))
    return results


def main() -> None:
    default = max((os.cpu_count() or 1) // 2, 1)  # as llama_cpp.Llama has it
    arguments = bench.parser(__doc__, rounds=80)
    arguments.add_argument("--tokens", type=int, default=16, help="decoded a round (%(default)s)")
    arguments.add_argument("--prompt", type=int, default=16, help="tokens before them (%(default)s)")
    arguments.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, default, os.cpu_count() or 1}),
        help="1, Llama's default and all cores, unless given",
    )
    options = arguments.parse_args()
    report = bench.Report("decode", options.json)
    count = options.prompt + options.tokens
    tokens = np.random.default_rng(0).integers(1000, 40000, count).tolist()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        make = makers(Path(name))
        for threads in options.threads:
            subjects = {n: Subject(f(threads), tokens, options.prompt) for n, f in make.items()}
            results[threads] = show(report, bench.interleave(subjects, options.rounds, 2), threads)
            for subject in subjects.values():
                subject.close()
    report.say(f"\nllama_cpp.Llama's default here: {default} threads")
    for threads, by_name in results.items():
        for rank in RANKS:
            ratio = by_name[f"ours, rank {rank}"]["over_stock"]
            report.target(f"{threads} threads: rank {rank} / stock", ratio, 1.03)
        if threads == 1:
            ratio = by_name[f"ours, rank {RANKS[-1]}"]["over_base"]
            report.target(f"1 thread: rank {RANKS[-1]} / base", ratio, 1.1)
    report.record |= {
        "prompt": options.prompt,
        "tokens": options.tokens,
        "default_threads": default,
        "results_by_threads": results,
    }
    report.finish()


if __name__ == "__main__":
    main()
