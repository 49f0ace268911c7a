"""What it costs to load a personalized model and to exchange its vector while it runs.

* a swap (from bytes to an adapter that is set) to vectors of rank 1 to 8, compared with the time in which
  llama.cpp loads a stock LoRA of the same shapes; and the token after it, compared with one after a reset;
* `runtime.load` with a vector, compared with plain `llama_cpp.Llama`;
* the growth of resident memory over many swaps, each after a token, and the bytes that they write.
"""

from __future__ import annotations

import gc
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import llama_cpp
import psutil
from _subjects import export, frames, smollm2, write_stock_lora

from tinylora_edge import runtime

RANKS = (1, 2, 4, 8)
PLAIN = "plain llama_cpp.Llama"
TOKEN = [1]
WARM_UP_SWAPS = 50

_opened: list[str] | None = None


def _watch_opens(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


class Subject:
    """A loaded model and frames to swap to, each another vector than the one before."""

    def __init__(self, bundle: Path, vectors: list[bytes]) -> None:
        self.llm = runtime.load(bundle, vectors[0])
        self._next: Iterator[bytes] = itertools.cycle(vectors)

    def swap(self) -> float:
        """Return the seconds of a swap, in a context that has tokens."""
        self.llm.eval(TOKEN)
        vector = next(self._next)
        with bench.stopwatch() as watch:
            self.llm.swap(vector)
        return watch.seconds

    def token_after_swap(self) -> float:
        self.swap()
        return self.token()

    def token_after_reset(self) -> float:
        self.llm.reset()
        return self.token()

    def token(self) -> float:
        with bench.stopwatch() as watch:
            self.llm.eval(TOKEN)
        return watch.seconds


def stock_init(llm: llama_cpp.Llama, path: Path) -> Callable[[], float]:
    def run() -> float:
        with bench.stopwatch() as watch:
            adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())
        if not adapter:
            raise SystemExit("llama.cpp refused the stock LoRA")
        llama_cpp.llama_adapter_lora_free(adapter)
        return watch.seconds

    return run


def loading(make: Callable[[], llama_cpp.Llama]) -> Callable[[], float]:
    def run() -> float:
        gc.collect()
        with bench.stopwatch() as watch:
            llm = make()
        llm.close()
        return watch.seconds

    return run


def soak(subject: Subject, swaps: int) -> dict[str, Any]:
    """Swap many times, each after a token, and return what that leaves behind.

    These are the `resident` bytes before, their `growth`, what the process wrote by the kernel's counters,
    and the files that Python `opened`.
    """
    global _opened
    process = psutil.Process()
    for _ in range(WARM_UP_SWAPS):
        subject.swap()
    gc.collect()
    resident, io = process.memory_info().rss, _io_counters()
    _opened = []
    for _ in range(swaps):
        subject.swap()
    opened, _opened = _opened, None
    io_after = _io_counters()
    gc.collect()
    return {
        "swaps": swaps,
        "resident": resident,
        "growth": process.memory_info().rss - resident,
        "opened": opened,
        **{key: io_after[key] - io[key] for key in io},
    }


def _io_counters() -> dict[str, int]:
    counters = Path("/proc/self/io")
    if not counters.exists():
        return {}  # not on Linux: there only the audit hook sees writes
    values = dict(line.split(": ") for line in counters.read_text().splitlines())
    return {key: int(values[key]) for key in ("wchar", "syscw", "write_bytes")}


def show(report: bench.Report, times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    results = {name: bench.summarize(values) for name, values in times.items()}
    rows = [
        [
            name,
            *(f"{1e3 * r[key]:.3f}" for key in ("min", "median", "p95")),
            f"{r['median'] / results[base]['median']:.3g}",
        ]
        for name, r in results.items()
    ]
    report.say()
    report.say(bench.table(["", "min ms", "median ms", "p95 ms", f"x {base}"], rows))
    return results


def main() -> None:
    arguments = bench.parser(__doc__, rounds=200)
    arguments.add_argument("--loads", type=int, default=15, help="rounds of loading (%(default)s)")
    arguments.add_argument("--swaps", type=int, default=1000, help="for memory and writes (%(default)s)")
    options = arguments.parse_args()
    report = bench.Report("swap", options.json)
    sys.addaudithook(_watch_opens)
    with tempfile.TemporaryDirectory() as name:
        measure(report, Path(name), options.rounds, options.loads, options.swaps)
    report.finish()


def measure(report: bench.Report, folder: Path, rounds: int, loads: int, swaps: int) -> None:
    bundle, bases = export(folder)
    plain = llama_cpp.Llama(str(smollm2()), verbose=False)
    subjects, contestants = {}, {}
    for rank in RANKS:
        basis, lora = bases.basis(rank=rank), folder / f"stock-{rank}.gguf"
        write_stock_lora(lora, basis)
        subjects[rank] = Subject(bundle, frames(basis, 16))
        contestants[f"swap, rank {rank}"] = subjects[rank].swap
        contestants[f"stock init, rank {rank}"] = stock_init(plain, lora)
    swap = show(report, bench.interleave(contestants, rounds, 5), f"stock init, rank {RANKS[0]}")
    tokens = {}
    for rank in (2, 8):
        tokens[f"token after reset, rank {rank}"] = subjects[rank].token_after_reset
        tokens[f"token after swap, rank {rank}"] = subjects[rank].token_after_swap
    token = show(report, bench.interleave(tokens, rounds, 5), "token after reset, rank 2")

    sizes = {"13 numbers": bases.basis(numbers=13), "rank 8": bases.basis(rank=8)}
    makers = {PLAIN: lambda: llama_cpp.Llama(str(smollm2()), verbose=False)}
    for name, basis in sizes.items():
        (frame,) = frames(basis, 1)
        makers[f"runtime.load, {name}"] = partial(runtime.load, bundle, frame)
    load = show(
        report, bench.interleave({name: loading(make) for name, make in makers.items()}, loads, 2), PLAIN
    )

    soaked = {f"rank {rank}": soak(subjects[rank], swaps) for rank in (2, 8)}
    report.say()
    rows = [
        [name, f"{r['growth'] / 1e6:.2f}", str(r.get("wchar", "?")), str(len(r["opened"]))]
        for name, r in soaked.items()
    ]
    report.say(bench.table([f"over {swaps} swaps", "growth MB", "bytes written", "files opened"], rows))

    report.say()
    for rank in RANKS:
        ratio = swap[f"swap, rank {rank}"]["median"] / swap[f"stock init, rank {rank}"]["median"]
        report.target(f"swap / stock adapter init, rank {rank}", ratio, 1.5)
    for name in list(makers)[1:]:
        extra = 1e3 * (load[name]["median"] - load[PLAIN]["median"])
        report.target(f"{name} - plain Llama, ms", extra, 80)
    for name, r in soaked.items():
        report.target(f"{name}, growth over {swaps}, MB", r["growth"] / 1e6, 30)
        touched = r.get("wchar", 0) + len(r["opened"])
        report.target(f"{name}, bytes written + files opened", touched, 0)
    report.record |= {"swap": swap, "token": token, "load": load, "soak": soaked}


if __name__ == "__main__":
    main()
