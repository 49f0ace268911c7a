"""What a vector on few modules keeps of the gain, and what its side path costs while decoding.

Every choice of modules has 13 dense directions, which is the form of a learned basis: one folded adapter in
llama.cpp, one input of the graph in ONNX Runtime. What they cost does not depend on what the projections are,
so they are random here. All contestants evaluate the same token ids with one thread, one at a time and by
turns, and what counts is the time on a core (process time): other work on the machine makes a round longer,
and not dearer. Shares are those of `directions.py`, of what 13 learned directions of all modules close.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import llama_cpp
import numpy as np
from _subjects import FOLDED, NORM, smollm2
from onnx_decode import Model

from tinylora_edge import Basis, MicroVector, runtime
from tinylora_edge.exporters import export_onnx
from tinylora_edge.exporters.onnx.builder import build
from tinylora_edge.formats.onnx_adapter import basis_version, encode

BASE, ALL = "base", "all"
CHOICES: dict[str, tuple[str, ...]] = {
    ALL: (),
    "ffn_gate, ffn_up, ffn_down": ("ffn_*",),
    "attention": ("attn_*",),
    "every second block": ("blk.*[02468].*",),
    "every third block": tuple(f"blk.{block}.*" for block in range(0, 30, 3)),
    "ffn_down": ("ffn_down",),
    "attn_v": ("attn_v",),
}
"""Names as in `directions.json`, and the modules of each, as `--targets` takes them."""
KEPT = 0.9
BOUNDS = {"llama.cpp": 0.03, "ONNX Runtime, int4": 0.06}
"""Share of the gain that a choice would have to keep, and overhead that it might have, to be a preset."""

Contestant = Callable[[], float]


def shares() -> dict[str, float]:
    """Return what each choice keeps of what all modules close, of behaviours of families not learned from."""
    record = json.loads((Path(__file__).parent / "results" / "directions.json").read_text("utf-8"))
    found = {row["arm"]: row["held_out"] for row in record["arms"]}
    whole = found["learned, dense, 13"]
    part = {name: found.get(f"learned, dense, 13: {name}") for name in CHOICES if name != ALL}
    return {ALL: 1.0} | {name: share / whole for name, share in part.items() if share is not None}


def core_seconds(prompt: Callable[[], None], steps: Callable[[int], None], tokens: np.ndarray) -> float:
    """Return the seconds on a core that a token takes; the prompt is not counted."""
    prompt()
    start = time.process_time_ns()
    for token in tokens:
        steps(int(token))
    return (time.process_time_ns() - start) / 1e9 / len(tokens)


def in_llama(llm: llama_cpp.Llama, tokens: np.ndarray, prompt: int) -> Contestant:
    def begin() -> None:
        llm.reset()
        llm.eval(tokens[:prompt].tolist())

    return lambda: core_seconds(begin, lambda token: llm.eval([token]), tokens[prompt:])


def in_onnx(model: Model, adapter: str | None, tokens: np.ndarray, prompt: int) -> Contestant:
    def run() -> float:
        generator = model.generator(adapter, 1, len(tokens) + 1)
        return core_seconds(
            lambda: generator.append_tokens(tokens[:prompt]),
            lambda token: generator.append_tokens(np.array([token], np.int32)),
            tokens[prompt:],
        )

    return run


def export(folder: Path, names: list[str]) -> tuple[Path, dict[str, Basis]]:
    """Write a bundle for both engines for each choice; return the base graph, and the bases."""
    work = folder / "work"
    work.mkdir()
    graph = build(smollm2(), work, "int4").folder
    bases = {}
    for number, name in enumerate(names):
        settings = replace(FOLDED, targets=CHOICES[name])
        made = export_onnx(smollm2(), folder / str(number), graph=graph, with_gguf=True, settings=settings)
        bases[name] = made.basis
    return graph, bases


def llama_contestants(
    folder: Path, bases: dict[str, Basis], tokens: np.ndarray, prompt: int
) -> dict[str, Contestant]:
    options: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1, "use_mmap": False, "verbose": False}
    options["n_ctx"] = 256
    made = {BASE: in_llama(llama_cpp.Llama(str(smollm2()), **options), tokens, prompt)}
    for number, (name, basis) in enumerate(bases.items()):
        vector = MicroVector.random(basis, NORM)
        llm = runtime.load(folder / str(number), vector, engine="llama", **options)
        made[name] = in_llama(llm, tokens, prompt)
    return made


def onnx_contestants(
    folder: Path, graph: Path, bases: dict[str, Basis], tokens: np.ndarray, prompt: int
) -> dict[str, Contestant]:
    made = {BASE: in_onnx(Model(graph, 1), None, tokens, prompt)}
    for number, (name, basis) in enumerate(bases.items()):
        path = folder / f"{number}.onnx_adapter"
        values = MicroVector.random(basis, NORM).values.reshape(1, -1)
        path.write_bytes(encode(values, 0, basis_version(basis)))
        model = Model(folder / str(number) / "onnx", 1)
        model.load("v", path)
        made[name] = in_onnx(model, "v", tokens, prompt)
    return made


def overheads(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return of each choice its overhead: the median of its ratios to the base in the same round, less 1."""
    found = {}
    for name, own in times.items():
        ratios = np.array(own) / np.array(times[BASE])
        quartiles = np.percentile(ratios, [25, 75])
        found[name] = {
            "core_milliseconds": 1000 * float(np.median(own)),
            "overhead": float(np.median(ratios)) - 1,
            "least_over_least": min(own) / min(times[BASE]) - 1,
            "interquartile": float(quartiles[1] - quartiles[0]),
            "rounds": len(own),
        }
    return found


def main() -> None:
    arguments = bench.parser(__doc__, rounds=30)
    arguments.add_argument("--tokens", type=int, default=16, help="decoded a round (%(default)s)")
    arguments.add_argument("--prompt", type=int, default=16, help="tokens before them (%(default)s)")
    arguments.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="NAME")
    options = arguments.parse_args()
    report = bench.Report("frontier", options.json)
    random = np.random.default_rng(0)
    tokens = random.integers(1000, 40000, options.prompt + options.tokens).astype(np.int32)
    kept = shares()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph, bases = export(folder, options.choices)
        found = {}
        for engine in BOUNDS:
            if engine == "llama.cpp":
                contestants = llama_contestants(folder, bases, tokens, options.prompt)
            else:
                contestants = onnx_contestants(folder, graph, bases, tokens, options.prompt)
            found[engine] = overheads(bench.interleave(contestants, options.rounds, 2))
            del contestants
    rows = []
    for name, basis in bases.items():
        costs = [found[engine][name] for engine in BOUNDS]
        cells = [f"{100 * cost['overhead']:+.1f} %" for cost in costs]
        share = f"{kept[name]:.2f}" if name in kept else "?"
        rows.append([name, str(len(basis.modules)), share, *cells])
    report.say(bench.table(["modules", "number", "of the gain", *BOUNDS], rows))
    for name in bases:
        if kept.get(name, 0.0) < KEPT:
            report.say(f"{name}: keeps less than {KEPT:.0%}, so it is no preset, whatever it costs")
            continue
        for engine, bound in BOUNDS.items():
            report.target(f"{engine}: overhead of {name}", found[engine][name]["overhead"], "<=", bound)
    report.record |= {
        "prompt": options.prompt,
        "tokens": options.tokens,
        "share_kept": {name: kept.get(name) for name in bases},
        "modules": {name: len(basis.modules) for name, basis in bases.items()},
        "engines": found,
    }
    report.finish()


if __name__ == "__main__":
    main()
