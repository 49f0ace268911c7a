"""How much of a vector's gain is left once it is merged into the model, and the model is quantized again.

    python benchmarks/requantized.py BUNDLE --vector brevity v.bin --vector FOLDER snips.bin --study FILE

A task is a built-in one, or SNIPS in a folder (see `_sets.py`). The forms: `adapter`, at run time on the base
as it is; `F16` and `Q8_0`, merged into the base as float16 and as it is, which is what `convert --to gguf`
writes; the others, that Q8_0 file requantized as `llama-quantize --allow-requantize` does. All answer the
same held-out prompts, greedily, in llama.cpp. A form that is in the record is not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _sets import snips
from _subjects import requantized

from tinylora_edge import Bundle, MicroVector, Policy, load_bundle, runtime
from tinylora_edge.eval.measure import Evaluation, compare, evaluate, fitted, held_out
from tinylora_edge.exporters.convert import write_merged_gguf
from tinylora_edge.formats.gguf import open_gguf
from tinylora_edge.formats.side_tensors import fingerprint, save_bases
from tinylora_edge.process import cores
from tinylora_edge.tasks import Task, load_task
from tinylora_edge.tasks.rewards import json_value

FORMS = "adapter", "F16", "Q8_0", "Q4_K_M", "Q4_1"


def task_of(name: str, n: int) -> Task:
    """Return a task with n held-out prompts."""
    if not Path(name).is_dir():
        return load_task(name, held_out=n)
    data = snips(Path(name), 70, 0).thinned(n)
    longest = max(len(str(sample.answer)) for sample in data.test)
    return Task("snips", data.train, data.test[:n], json_value, max_tokens=longest)


def forms(bundle: Bundle, vector: MicroVector, wanted: list[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the GGUF of each form that is asked for, merged."""
    basis, merged = bundle.bases.of(vector), folder / "Q8_0.gguf"
    write_merged_gguf(basis, vector, bundle.base, merged)
    for form in wanted:
        path = folder / f"{form}.gguf"
        if form == "F16":
            write_merged_gguf(basis, vector, requantized(bundle.base, folder / "floats.gguf", form), path)
        elif form != "Q8_0":
            requantized(merged, path, form)
        yield form, path


def measured(bundle: Path, task: Task, vector: MicroVector | None) -> Evaluation:
    """Score the answers of a bundle, with a vector at run time or without one."""
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llm:
        task = fitted(task, llm)
        with llm.batch(task.held_out, task.max_tokens, n_threads=cores()) as batch:
            return evaluate(batch, task, vector)


def study(bundle: Bundle, name: str, file: Path, wanted: list[str], n: int) -> Iterator[dict[str, Any]]:
    """Yield a row a form: its score, what it gains on the base, and how it differs from the adapter."""
    task, vector = task_of(name, n), Policy().check(file.read_bytes(), bundle.bases)
    base, adapter = (measured(bundle.base, task, each) for each in (None, vector))
    about = {"numbers": len(vector.values), "rank": bundle.bases.of(vector).rank, "norm": vector.norm}

    def row(form: str, found: Evaluation, size: int) -> dict[str, Any]:
        lost = asdict(compare(adapter, found))
        return {"form": form, "bytes": size, **about, **held_out(base, found), "to_adapter": lost}

    if "adapter" in wanted:
        yield row("adapter", adapter, bundle.base.stat().st_size)
    with tempfile.TemporaryDirectory() as work:
        for form, path in forms(bundle, vector, [each for each in wanted if each != "adapter"], Path(work)):
            print_of = fingerprint(open_gguf(path), bundle.factors.modules)
            save_bases(bundle.bases.with_fingerprint(print_of), path.with_suffix(".basis.gguf"))
            yield row(form, measured(path, task, None), path.stat().st_size)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--vector", nargs=2, action="append", required=True, metavar=("TASK", "FILE"))
    arguments.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    arguments.add_argument("--n", type=int, default=120, help="held-out prompts (%(default)s)")
    arguments.add_argument("--study", type=Path, default=Path("requantized.jsonl"), help="the record")
    options = arguments.parse_args()
    bundle, rows = load_bundle(options.bundle), []
    for name, file in options.vector:
        key = {"task": Path(name).name, "file": Path(file).name, "n_asked": options.n}
        done = [row for row in bench.read_study(options.study) if row | key == row]
        left = [form for form in options.forms if form not in {row["form"] for row in done}]
        for found in study(bundle, name, Path(file), left, options.n) if left else ():
            environment = bench.environment()
            made = {"commit": bench.commit(), "versions": environment["versions"], "cpu": environment["cpu"]}
            bench.keep(options.study, key | found | made)
            done.append(key | found)
        for row in done:
            gain = f"{row['difference']:+.3f} +- {row['standard_error']:.3f}"
            rows.append([row["file"], row["form"], f"{row['bytes']:,}", f"{row['vector']:.3f}", gain])
    print(bench.table(["vector", "form", "bytes", "score", "gain"], rows))


if __name__ == "__main__":
    main()
