"""What benchmarks share: the loop in which contestants take turns, the table, the record."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

from tinylora_edge.process import set_waiting

set_waiting()  # as the product's commands do: the times of threads that spin for each other depend on luck

PACKAGES = (
    *("tinylora-edge", "numpy", "gguf", "llama-cpp-python", "torch", "transformers", "peft", "scipy"),
    *("onnx", "onnxruntime", "onnxruntime-genai"),
)


class Stopwatch:
    seconds = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    watch = Stopwatch()
    start = time.perf_counter_ns()
    try:
        yield watch
    finally:
        watch.seconds = (time.perf_counter_ns() - start) / 1e9


def interleave(
    contestants: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1
) -> dict[str, Any]:
    """Run every contestant once a round, and return its times: name -> `rounds` floats.

    A contestant returns the time that it measured, so that setting up and cleaning up are not in it. Each
    round starts with another contestant, so that not always the same one comes first.
    """
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            figure = contestants[name]()
            if number >= 0:
                times[name].append(figure)
    return times


def summarize(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"min": ordered[0], "median": statistics.median(ordered), "p95": p95, "rounds": len(ordered)}


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), "  ".join("-" * w for w in widths), *(line(row) for row in rows)])


class Report:
    """Collects what a benchmark found; prints it as text, and writes it as a JSON record."""

    def __init__(self, benchmark: str, json_target: str | None) -> None:
        self._json = json_target
        self._text = sys.stderr if json_target == "-" else sys.stdout  # stdout is then the record alone
        self.record: dict[str, Any] = {"benchmark": benchmark, "environment": environment(), "targets": []}
        env = self.record["environment"]
        self.say(f"{benchmark}: {env['cpu']}, {env['cores']} cores")
        self.say(f"load average {env['load_average']} at the start")

    def say(self, text: str = "") -> None:
        print(text, file=self._text, flush=True)

    def target(self, name: str, value: float, bound: float) -> None:
        met = value <= bound
        self.record["targets"].append({"name": name, "value": value, "bound": bound, "met": met})
        self.say(f"{'met   ' if met else 'MISSED'}  {name}: {value:.4g} (target <= {bound:g})")

    def finish(self) -> None:
        self.record["load_average_at_end"] = load_average()
        self.say(f"load average {load_average()} at the end")
        text = json.dumps(self.record, indent=2) + "\n"
        if self._json == "-":
            sys.stdout.write(text)
        elif self._json:
            Path(self._json).write_text(text, "utf-8")


def environment() -> dict[str, Any]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    tuned = {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "OPENBLAS_", "MKL_", "GOMP_"))}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": load_average(),
        "variables": dict(sorted(tuned.items())),
        "versions": found,
    }


def read_study(study: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a study, a JSON object a line; none where there is no file yet.

    Raises:
        SystemExit: a line is no JSON object.
    """
    if study is None or not study.exists():
        return []
    rows = []
    for number, line in enumerate(study.read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise SystemExit(
                f"{study}, line {number} is no record (was it cut off?): {line[:40]!r}; take the line out"
            )
        rows.append(row)
    return rows


def keep(study: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a study as soon as it is measured, so that an interrupted run continues behind it."""
    with open(study, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def commit() -> str | None:
    """Return the commit of the checkout, with a + if a file differs from it; None outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        words = [*git, "rev-parse", "--short=12", "HEAD"]
        head = subprocess.check_output(words, text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changed.returncode else "")


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def load_average() -> list[float]:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def peak_resident() -> int:
    """Return the peak resident bytes of this process.

    On Linux it is VmHWM, as ru_maxrss begins with what the parent had.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource  # not on Windows

        value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return value if sys.platform == "darwin" else value * 1024


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    result.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    result.add_argument("--rounds", type=int, default=rounds, help="times each contestant runs (%(default)s)")
    return result
