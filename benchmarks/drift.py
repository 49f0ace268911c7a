"""How far vectors move a model from its base on general prompts, and their gain on a task where one is named.

Vectors come from files (`--vectors BUNDLE FILE...`, once a bundle). `--scales` measures shares of each vector
too: two bases can then be compared at equal gain. Every vector is a line of the study, which is gone on with.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.eval import measure_drift
from tinylora_edge.eval.measure import compare, evaluate
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.tasks import Task, load_task


def same(row: dict[str, Any], name: dict[str, Any]) -> bool:
    return row.get("scale") == name.get("scale") and all(row.get(key) == name[key] for key in name)


def threads_of(options: argparse.Namespace) -> dict[str, Any]:
    return {} if options.workers is None else {"n_threads": options.workers}


def nats(llm: Any, batch: Batch, task: Task, vector: MicroVector | None) -> float:
    """Return the nats a token of the given answers to the held-out prompts."""
    answers = [[llm.encode_answer(sample)] for sample in task.held_out]
    (found,) = batch.score_each([vector], batch.encode(task.held_out), answers)
    return float(-np.concatenate([row for (row,) in found]).mean())


def measure(
    bundle: Path, data: bytes, task: str | None, scale: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the drift of a frame's vector, times the scale, and its gain on a task's held-out prompts."""
    threads = threads_of(options)
    found: dict[str, Any] = {}
    with closing(runtime.load(bundle, engine="llama", n_ctx=64, **threads)) as llm:
        whole = MicroVector.from_bytes(data, llm.bases)
        vector = whole if scale == 1 else MicroVector(whole.values * np.float32(scale), basis=whole.basis)
        found["norm"] = vector.norm
        if task is not None:
            loaded = load_task(task, held_out=options.held_out)
            with llm.batch(loaded.held_out, loaded.max_tokens, **threads) as batch:
                base, own = evaluate(batch, loaded, None), evaluate(batch, loaded, vector)
                found |= {"base": base.mean, "vector": own.mean, "n": base.n, **asdict(compare(base, own))}
                if all(sample.answer is not None for sample in loaded.held_out):
                    found["nats"] = [nats(llm, batch, loaded, each) for each in (None, vector)]
        found["drift"] = asdict(measure_drift(llm, vector, count=options.prompts, **threads))
    return found


def subjects(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield what names each vector, which is all that its line is found by, and its bundle."""
    wanted = {"prompts": options.prompts, "held_out": options.held_out}
    scaled = [wanted if scale == 1 else wanted | {"scale": scale} for scale in options.scales]
    for bundle, *files in options.vectors:
        for file in files:
            data = Path(file).read_bytes()
            digest, basis = hashlib.sha256(data).hexdigest()[:16], load_bundle(bundle).bases.of_frame(data)
            names = {"bundle": bundle, "basis": basis.digest, "task": options.task}
            for each in scaled:
                yield {**names, "file": file, "sha256": digest, **each}, Path(bundle)


def run_missing(options: argparse.Namespace, report: bench.Report) -> list[dict[str, Any]]:
    """Measure what is missing; return the lines of all that were asked for, in order."""
    chosen = []
    for name, bundle in subjects(options):
        known = next((row for row in bench.read_study(options.study) if same(row, name)), None)
        if known is None:
            data, scale = Path(name["file"]).read_bytes(), name.get("scale", 1)
            known = {**name, **measure(bundle, data, name["task"], scale, options)}
            bench.keep(options.study, known)
            report.say(f"measured {name['file']} of {bundle}")
        chosen.append(known)
    return chosen


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """Return the figures of the vectors of one line: means over seeds, sums of answers."""
    drifts = [row["drift"] for row in rows]
    gains = [row["difference"] for row in rows if "difference" in row]

    def new(kind: str) -> str:
        sound = sum(drift[kind]["judged"] - drift[kind]["base"] for drift in drifts)
        count = sum(drift[kind]["new"] for drift in drifts)
        return f"{count}/{sound}" + (f" {count / sound:.1%}" if sound else "")

    nats = [drift["kl"] for drift in drifts]
    error = drifts[0]["standard_error"] or 0.0  # of one vector that between prompts, of several between them
    if len(nats) > 1:
        error = statistics.stdev(nats) / len(nats) ** 0.5
    mean = f"{statistics.mean(nats):.3f} +- {error:.3f}"
    return [f"{statistics.mean(gains):+.3f}" if gains else "", mean, new("repeating"), new("wrong")]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--study", type=Path, metavar="FILE", help="measurements, kept and gone on with")
    arguments.add_argument(
        "--vectors", nargs="+", action="append", default=[], metavar="PATH", help="a bundle and its frames"
    )
    arguments.add_argument("--task", help="that the vectors are for; their gain on it is measured, too")
    arguments.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="X", help="of the files' vectors"
    )
    arguments.add_argument("--prompts", type=int, help="general prompts; all unless given")
    arguments.add_argument("--held-out", type=int, default=128, help="prompts of a task (%(default)s)")
    arguments.add_argument("--workers", type=int, help="cores; all unless given")
    options = arguments.parse_args()
    if any(len(group) < 2 for group in options.vectors):
        arguments.error("--vectors takes a bundle and then its vectors: --vectors BUNDLE FILE...")
    report = bench.Report("drift", options.json)
    with tempfile.TemporaryDirectory() as folder:
        options.study = options.study or Path(folder) / "study.jsonl"
        rows = run_missing(options, report)
    lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        what = Path(row["file"]).name
        what += f" x {row['scale']:g}" if "scale" in row else ""
        lines.setdefault((Path(row["bundle"]).name, Path(row["task"] or "").name, what), []).append(row)
    table = [[*line, str(len(mine)), *cells(mine)] for line, mine in lines.items()]
    if table:
        headers = ["bundle", "task", "vector", "vectors", "gain", "nats a token", "repeating", "wrong"]
        report.say("\n" + bench.table(headers, table))
    report.record |= {"runs": rows}
    report.finish()


if __name__ == "__main__":
    main()
