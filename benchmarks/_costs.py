"""What it costs to personalize a model: export, load, swap and a token, beside a plain base and stock LoRAs.

Times are of the process's CPU, with one thread: other work on the machine is not in them.
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import llama_cpp
import numpy as np
from _subjects import frames, write_stock_lora

from tinylora_edge import MicroVector, runtime
from tinylora_edge.formats.side_tensors import load_bases

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv.pop(1))
import _common as bench
from tinylora_edge.cli import main
from tinylora_edge.exporters.weights.gguf import GGUFWeights
begun = time.process_time(), time.perf_counter()
if sys.argv[1] == "export":
    try:
        main()
    except SystemExit as left:
        assert not left.code, left
else:
    weights = GGUFWeights(__import__("pathlib").Path(sys.argv[2]))
    for module in weights.modules:
        for matrix in weights.matrices(module):
            matrix.rows(0, matrix.shape[0])
print(json.dumps({"cpu_s": time.process_time() - begun[0], "wall_s": time.perf_counter() - begun[1],
                  "peak_bytes": bench.peak_resident()}))
"""
ONE_THREAD: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
# As llama_cpp.Llama loads a base with a lora_path; and small, as seven stand side by side.
UNMAPPED = ONE_THREAD | {"use_mmap": False, "n_ctx": 256, "n_batch": 64}
SIZES: dict[str, dict[str, Any]] = {
    "13 numbers": {"numbers": 13},
    "rank 2": {"rank": 2},
    "rank 64x8": {"rank": (64, 8)},
}
PROMPT, TOKENS = 2, 4
LOUD = 40.0  # the norm of a vector that changes the answer
QUESTION = "Write a Python function that returns the n-th Fibonacci number. Only the code."


def child(*words: str) -> dict[str, Any]:
    """Export a model, or read all its weights once, in a process of its own."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", CHILD, here, *words], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cpu(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def costs(model: Path, done: Collection[str], rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a model costs by what it is measured on, but for what is done; a bundle stays beside it."""
    bundle = model.with_suffix(".bundle")
    if "export" not in done or not bundle.exists():
        yield "export", exports(model, bundle)
    for what, measure in {"load": loads, "token": tokens}.items():
        if what not in done:
            yield what, measure(model, bundle, rounds)


def exports(model: Path, bundle: Path) -> dict[str, Any]:
    found = {"plain pass": child("plain", str(model))}
    for words in ("--rank 8", "--outputs 64"):
        shutil.rmtree(bundle, ignore_errors=True)
        found[words] = child("export", str(model), "-o", str(bundle), "--json", *words.split())
        found[words]["basis_bytes"] = (bundle / "basis.gguf").stat().st_size
    return found


def loads(model: Path, bundle: Path, rounds: int) -> dict[str, Any]:
    (frame,) = frames(load_bases(bundle / "basis.gguf").basis(numbers=13), 1)

    def load(make: Callable[[], llama_cpp.Llama]) -> float:
        gc.collect()
        made: list[llama_cpp.Llama] = []
        seconds = cpu(lambda: made.append(make()))
        made[0].close()
        return seconds

    makers = {
        "Llama": lambda: llama_cpp.Llama(str(model), **ONE_THREAD),
        "runtime.load": lambda: runtime.load(bundle, frame, **ONE_THREAD),
    }
    return ratios(
        bench.interleave({n: lambda m=m: load(m) for n, m in makers.items()}, rounds), {"over_stock": "Llama"}
    )


def tokens(model: Path, bundle: Path, rounds: int) -> dict[str, Any]:
    """Return the costs of a swap and a token, and what the largest vector and its stock LoRA answer."""
    bases = load_bases(bundle / "basis.gguf")
    llms = {"base": llama_cpp.Llama(str(model), **UNMAPPED)}
    swaps: dict[str, Callable[[], float]] = {}
    for name, which in SIZES.items():
        basis, lora = bases.basis(**which), bundle / f"stock, {name}.gguf"
        loud = MicroVector.random(basis, LOUD)
        write_stock_lora(lora, basis, loud)
        vectors = itertools.cycle(frames(basis, 4))
        ours = llms[name] = runtime.load(bundle, next(vectors), **UNMAPPED)
        llms[f"stock, {name}"] = llama_cpp.Llama(str(model), lora_path=str(lora), **UNMAPPED)
        swaps[name] = lambda llm=ours, v=vectors: swap(llm, v)
        swaps[f"stock, {name}"] = lambda path=lora: stock_init(llms["base"], path)
    ours.swap(loud)
    answers = {name: answer(llms[name]) for name in ("base", name, f"stock, {name}")}
    steps = {name: lambda llm=llm: token(llm) for name, llm in llms.items()}
    swapped = ratios(bench.interleave(swaps, 2 * rounds), {"over_stock": "stock, {}"})
    decoded = ratios(bench.interleave(steps, rounds), {"over_base": "base", "over_stock": "stock, {}"})
    return {"swap": swapped, "token": decoded, "answers": answers}


def swap(llm: Any, vectors: Iterator[bytes]) -> float:
    """Seconds of a swap, in a context that holds a token."""
    llm.reset()
    llm.eval([9707])
    vector = next(vectors)
    return cpu(lambda: llm.swap(vector))


def stock_init(llm: llama_cpp.Llama, path: Path) -> float:
    made: list[Any] = []
    seconds = cpu(lambda: made.append(llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())))
    llama_cpp.llama_adapter_lora_free(made[0])
    return seconds


def token(llm: llama_cpp.Llama) -> float:
    """Seconds a token, after a prompt that is not counted."""
    ids = np.random.default_rng(0).integers(1000, 40000, PROMPT + TOKENS).tolist()
    llm.reset()
    llm.eval(ids[:PROMPT])
    return cpu(lambda: [llm.eval([each]) for each in ids[PROMPT:]]) / TOKENS


def answer(llm: llama_cpp.Llama) -> str:
    messages: Any = [{"role": "user", "content": QUESTION}]
    made: Any = llm.create_chat_completion(messages, temperature=0, max_tokens=16)
    return str(made["choices"][0]["message"]["content"])


def ratios(times: dict[str, list[float]], over: dict[str, str]) -> dict[str, dict[str, float]]:
    """Summarize times, each with the median of its ratios to another contestant's in the same round."""
    found = {name: bench.summarize(values) for name, values in times.items()}
    for name, figures in found.items():
        for key, pattern in over.items():
            if (other := pattern.format(name)) in times and other != name:
                pairs = zip(times[name], times[other], strict=True)
                figures[key] = statistics.median(own / its for own, its in pairs)
    return found
