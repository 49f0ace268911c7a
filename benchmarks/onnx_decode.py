"""How fast baked graphs of ranks 2 and 8 decode in onnxruntime-genai: against base and naive side path.

Every contestant evaluates the same token ids, one at a time, after the same prompt. Then a batch: four users
with a vector each, against the same batch with one vector for all, and against four runs one after another.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import onnx
import onnxruntime_genai as og
from _onnx_naive import bake_naively
from _subjects import smollm2

from tinylora_edge import Factors
from tinylora_edge.exporters import ExportSettings, export_onnx
from tinylora_edge.exporters.onnx.builder import PRECISIONS, build
from tinylora_edge.formats.onnx_adapter import encode
from tinylora_edge.modules import Heads

BASE, NAIVE = "base", "naive side path, rank 2"
RANKS = {f"ours, rank {rank}": rank for rank in (2, 8)}
OURS = "ours, rank 8"
USERS, SHARED, SINGLE = "a vector for each", "one vector for all", "one run after another"


class Model:
    """A graph in onnxruntime-genai, and its vectors."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        config = og.Config(str(folder))
        if threads:
            options = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": options}}))
        self.model = og.Model(config)
        self.adapters = og.Adapters(self.model)

    def load(self, name: str, path: Path) -> None:
        self.adapters.load(str(path), name)

    def generator(self, adapter: str | None, batch: int, length: int) -> Any:
        params = og.GeneratorParams(self.model)
        # Nobody ends early, and all decode as many tokens.
        params.set_search_options(do_sample=False, batch_size=batch, max_length=length, min_length=length)
        generator = og.Generator(self.model, params)
        if adapter is not None:
            generator.set_active_adapter(self.adapters, adapter)
        return generator


def decoding(model: Model, adapter: str | None, tokens: np.ndarray, prompt: int) -> Callable[[], float]:
    """Seconds a token of a single sequence; the prompt is not counted."""

    def run() -> float:
        generator = model.generator(adapter, 1, len(tokens) + 1)
        generator.append_tokens(tokens[:prompt])
        with bench.stopwatch() as watch:
            for token in tokens[prompt:]:
                generator.append_tokens(token[None])
        return watch.seconds / len(tokens[prompt:])

    return run


def batch(model: Model, adapters: list[str], prompts: np.ndarray, count: int) -> Callable[[], float]:
    """Seconds a token, over all sequences: together with one adapter, or one run an adapter."""

    def run() -> float:
        seconds = 0.0
        groups = [prompts] if len(adapters) == 1 else [line[None] for line in prompts]
        for adapter, group in zip(adapters, groups, strict=True):
            generator = model.generator(adapter, len(group), group.shape[1] + count)
            generator.append_tokens(group)
            with bench.stopwatch() as watch:
                for _ in range(count):
                    generator.generate_next_token()
            seconds += watch.seconds
        return seconds / (len(prompts) * count)

    return run


def show(report: bench.Report, times: Mapping[str, list[float]], against: str, title: str) -> dict[str, Any]:
    results = {name: bench.summarize(values) for name, values in times.items()}
    rows = []
    for name, r in results.items():
        r["tokens_per_second"] = 1 / r["median"]
        # Of neighbours in one round: what slows the machine for a while falls on both.
        pairs = [own / other for own, other in zip(times[name], times[against], strict=True)]
        r["time_over_reference_paired"] = float(np.median(pairs))
        r["time_over_reference_best"] = r["min"] / results[against]["min"]
        rows.append(
            [
                name,
                f"{1 / r['min']:.1f}",
                f"{1 / r['median']:.1f}",
                f"{100 * (r['time_over_reference_paired'] - 1):+.1f} %",
                f"{100 * (r['time_over_reference_best'] - 1):+.1f} %",
            ]
        )
    report.say(f"\n{title}")
    headers = ["", "best tok/s", "median tok/s", f"time over {against}, paired", "best over best"]
    report.say(bench.table(headers, rows))
    return results


def graphs(folder: Path, precision: str) -> tuple[dict[str, Path], dict[str, Factors], dict[str, int]]:
    """The graphs, of one base, the factors of those that were baked, and the nodes that each has."""
    base = folder / f"base-{precision}"
    base.mkdir()
    build(smollm2(), base, precision, Heads(9, 3))
    places, factors = {BASE: base}, {}
    for name, rank in RANKS.items():
        output = folder / f"{precision}-{rank}"
        made = export_onnx(smollm2(), output, precision=precision, settings=ExportSettings(rank=rank))
        places[name], factors[name] = output / "onnx", made.bases.factors
    nodes = {
        name: len(onnx.load_model(str(place / "model.onnx"), load_external_data=False).graph.node)
        for name, place in places.items()
    }
    small = next(iter(RANKS))
    places[NAIVE], factors[NAIVE] = folder / f"naive-{precision}", factors[small]
    nodes[NAIVE] = nodes[BASE] + bake_naively(base, factors[small], places[NAIVE])
    return places, factors, nodes


def write_adapters(folder: Path, factors: Factors, users: int) -> dict[str, Path]:
    """Name -> adapter: `0` .. of one user each, and `all` of them, a row each."""
    r = np.random.default_rng(0).standard_normal((users, factors.entries))
    values = (r * 0.01).astype(np.float32)  # the model speaks on
    chosen = {str(user): values[user : user + 1] for user in range(users)} | {"all": values}
    paths = {}
    for name, rows in chosen.items():
        paths[name] = folder / f"{name}-{factors.rank}.onnx_adapter"
        paths[name].write_bytes(encode(rows, 0, 0))
    return paths


def measure(report: bench.Report, options: Any, precision: str, folder: Path) -> dict[str, Any]:
    places, factors, nodes = graphs(folder, precision)
    random = np.random.default_rng(0)
    tokens = random.integers(1000, 40000, options.prompt + options.tokens).astype(np.int32)
    prompts = random.integers(1000, 40000, (options.users, options.prompt)).astype(np.int32)
    found: dict[str, Any] = {"nodes": nodes}
    for threads in options.threads:
        label = f"{threads} threads" if threads else "default threads"
        models = {name: Model(place, threads) for name, place in places.items()}
        for name, baked in factors.items():
            for adapter, path in write_adapters(folder, baked, options.users).items():
                models[name].load(adapter, path)
        contestants = {
            name: decoding(model, None if name == BASE else "0", tokens, options.prompt)
            for name, model in models.items()
        }
        times = bench.interleave(contestants, options.rounds, 2)
        title = f"{precision}, {label}: one sequence"
        single = show(report, times, BASE, title)
        ours = models[OURS]
        names = [str(user) for user in range(options.users)]
        contestants = {
            USERS: batch(ours, ["all"], prompts, options.tokens),
            SHARED: batch(ours, ["0"], prompts, options.tokens),
            SINGLE: batch(ours, names, prompts, options.tokens),
        }
        times = bench.interleave(contestants, max(options.rounds // 2, 1), 1)
        together = show(report, times, SHARED, f"{precision}, {label}: {options.users} sequences")
        found[label] = {"single": single, "batch": together}
        del models, ours, contestants
        for name in RANKS:
            overhead = single[name]["time_over_reference_paired"] - 1
            report.target(f"{precision}, {label}: overhead of {name}", overhead, "<=", 0.1)
        speed = 1 / together[USERS]["time_over_reference_paired"]
        report.target(f"{precision}, {label}: {USERS} / {SHARED}, tokens/s", speed, ">=", 0.85)
    return found


def main() -> None:
    arguments = bench.parser(__doc__, rounds=40)
    arguments.add_argument("--tokens", type=int, default=24, help="decoded a round (%(default)s)")
    arguments.add_argument("--prompt", type=int, default=16, help="tokens before them (%(default)s)")
    arguments.add_argument("--users", type=int, default=4, help="sequences of the batch (%(default)s)")
    arguments.add_argument(
        "--threads", type=int, nargs="+", default=[1, 0], help="0 is ONNX Runtime's default (1 0)"
    )
    arguments.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["int8", "fp32"], help="of the base"
    )
    options = arguments.parse_args()
    report = bench.Report("onnx_decode", options.json)
    report.record |= {"prompt": options.prompt, "tokens": options.tokens, "users": options.users}
    with tempfile.TemporaryDirectory() as name:
        for precision in options.precision:
            report.record[precision] = measure(report, options, precision, Path(name))
    report.finish()


if __name__ == "__main__":
    main()
