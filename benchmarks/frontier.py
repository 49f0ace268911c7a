"""What a vector on few modules keeps of the gain, and what its side path costs while decoding.

Every choice of modules has 13 dense directions, which is the form of a learned basis: one folded adapter in
llama.cpp, one input of the graph in ONNX Runtime. What they cost does not depend on what the projections are,
so they are random here. All contestants evaluate the same token ids with one thread, one at a time and by
turns, and what counts is the time on a core (process time): other work on the machine makes a round longer,
and not dearer. Where in memory a model's weights came to lie makes it up to a tenth faster or slower. So in
llama.cpp every choice is compared with the same loaded model without its vector, and in ONNX Runtime, where
the base is another graph, all are loaded several times. Shares are those of `directions.py`, of what 13
learned directions of all modules close.
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
import numpy as np
from _subjects import FOLDED, NORM, smollm2
from onnx_decode import Model

from tinylora_edge import Basis, MicroVector, runtime
from tinylora_edge.exporters import export_gguf, export_onnx
from tinylora_edge.exporters.onnx.builder import build
from tinylora_edge.formats.onnx_adapter import basis_version, encode
from tinylora_edge.modules import LIGHT

BASE, ALL = "base", "all"
LLAMA, ONNX = "llama.cpp", "ONNX Runtime, int4"
CHOICES: dict[str, tuple[str, ...]] = {
    ALL: (),
    "ffn_gate, ffn_up, ffn_down": ("ffn_*",),
    "attention": ("attn_*",),
    "attention and ffn_down": ("attn_*", "ffn_down"),
    LIGHT: (LIGHT,),
    "every second block": ("blk.*[02468].*",),
    "every third block": tuple(f"blk.{block}.*" for block in range(0, 30, 3)),
    "ffn_down": ("ffn_down",),
    "attn_v": ("attn_v",),
}
"""Names as in `directions.json`, and the modules of each, as `--targets` takes them."""
KEPT = 0.9
BOUNDS = {LLAMA: 0.03, ONNX: 0.06}
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


def in_llama(
    llm: runtime.TinyLoraLlama, vector: MicroVector | None, tokens: np.ndarray, prompt: int
) -> Contestant:
    def begin() -> None:
        if vector is None:
            llm.clear()
        else:
            llm.swap(vector)
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


def export(folder: Path, names: list[str], engines: list[str]) -> tuple[Path | None, dict[str, Basis]]:
    """Write a bundle for each choice; return the base graph where one is needed, and the bases."""
    if ONNX not in engines:
        settings = {name: replace(FOLDED, targets=CHOICES[name]) for name in names}
        made = [
            export_gguf(smollm2(), folder / str(number), settings=settings[name])
            for number, name in enumerate(names)
        ]
        return None, {name: each.basis for name, each in zip(names, made, strict=True)}
    work = folder / "work"
    work.mkdir()
    graph = build(smollm2(), work, "int4").folder
    bases = {}
    for number, name in enumerate(names):
        chosen = replace(FOLDED, targets=CHOICES[name])
        report = export_onnx(smollm2(), folder / str(number), graph=graph, with_gguf=True, settings=chosen)
        bases[name] = report.basis
    return graph, bases


def in_llamas(
    folder: Path, bases: dict[str, Basis], tokens: np.ndarray, prompt: int
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Return contestants, and for each choice the name of what it is compared with."""
    options: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1, "use_mmap": False, "n_ctx": 256}
    made: dict[str, Contestant] = {}
    for number, (name, basis) in enumerate(bases.items()):
        llm = runtime.load(folder / str(number), engine="llama", **options)
        for key, vector in ((name, MicroVector.random(basis, NORM)), (f"{name}, without", None)):
            made[key] = in_llama(llm, vector, tokens, prompt)
    return made, {name: f"{name}, without" for name in bases}


def in_graphs(
    folder: Path, graph: Path, bases: dict[str, Basis], tokens: np.ndarray, prompt: int, turn: int
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Return contestants, loaded in another order each turn, and what they are compared with."""
    made: dict[str, Contestant] = {}
    names = [BASE, *bases]
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        if name == BASE:
            made[name] = in_onnx(Model(graph, 1), None, tokens, prompt)
            continue
        number = list(bases).index(name)
        path = folder / f"{number}.onnx_adapter"
        values = MicroVector.random(bases[name], NORM).values.reshape(1, -1)
        path.write_bytes(encode(values, 0, basis_version(bases[name])))
        model = Model(folder / str(number) / "onnx", 1)
        model.load("v", path)
        made[name] = in_onnx(model, "v", tokens, prompt)
    return made, dict.fromkeys(bases, BASE)


def overheads(loads: list[dict[str, list[float]]], against: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return of each choice its overhead: the median of its ratios in a round, less 1, and over loads again.

    Args:
        loads: of each loading of the models, the times of all contestants: seconds a token, one a round.
        against: what each choice is compared with.
    """
    found = {}
    for name, other in against.items():
        each = [float(np.median(np.array(times[name]) / np.array(times[other]))) - 1 for times in loads]
        found[name] = {
            "overhead": float(np.median(each)),
            "of_each_load": each,
            "core_milliseconds": 1000 * float(np.median([np.median(times[name]) for times in loads])),
            "rounds": len(loads[0][name]),
        }
    return found


def main() -> None:
    arguments = bench.parser(__doc__, rounds=30)
    arguments.add_argument("--tokens", type=int, default=16, help="decoded a round (%(default)s)")
    arguments.add_argument("--prompt", type=int, default=16, help="tokens before them (%(default)s)")
    arguments.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="NAME")
    arguments.add_argument("--engines", nargs="+", choices=BOUNDS, default=list(BOUNDS), metavar="NAME")
    arguments.add_argument(
        "--loads", type=int, default=5, metavar="N", help="times ONNX's graphs are loaded (%(default)s)"
    )
    options = arguments.parse_args()
    report = bench.Report("frontier", options.json)
    random = np.random.default_rng(0)
    tokens = random.integers(1000, 40000, options.prompt + options.tokens).astype(np.int32)
    kept = shares()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph, bases = export(folder, options.choices, options.engines)
        found: dict[str, Any] = {}
        for engine in options.engines:
            loads = []
            for turn in range(options.loads if engine == ONNX else 1):
                if engine == ONNX:
                    assert graph is not None
                    contestants, against = in_graphs(folder, graph, bases, tokens, options.prompt, turn)
                else:
                    contestants, against = in_llamas(folder, bases, tokens, options.prompt)
                rounds = -(-options.rounds // options.loads) if engine == ONNX else options.rounds
                loads.append(bench.interleave(contestants, rounds, 1))
                contestants.clear()
            found[engine] = overheads(loads, against)
    rows = []
    for name, basis in bases.items():
        costs = [found[engine][name] for engine in options.engines]
        cells = [f"{100 * cost['overhead']:+.1f} %" for cost in costs]
        share = f"{kept[name]:.2f}" if name in kept else "?"
        rows.append([name, str(len(basis.modules)), share, *cells])
    report.say(bench.table(["modules", "number", "of the gain", *options.engines], rows))
    for name in bases:
        if kept.get(name, 0.0) < KEPT:
            report.say(f"{name}: keeps less than {KEPT:.0%}, so it is no preset, whatever it costs")
            continue
        for engine in options.engines:
            cost = found[engine][name]["overhead"]
            report.target(f"{engine}: overhead of {name}", cost, "<=", BOUNDS[engine])
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
