"""How long llama.cpp takes beside other work, by how its threads wait for each other.

Contestants are processes, which are asked in turn: plain llama_cpp with what its OpenMP does by itself, and
`runtime.load` with our short spin, with libgomp's long one, with others, asleep, and with one thread. They
are asked on the cores as they are, beside a busy loop a core, and beside another llama_cpp that decodes and
spins on all cores.

With `--work` the same is asked of what people do: the command `run`, a click (`tell`), a short `tune`, with
our spin and with the one that plain llama_cpp has, libgomp's. There a training run is what is beside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import _worker
from _decoder import Decoder
from _subjects import SCALES, export, smollm2

from tinylora_edge.system import cores

PLAIN, OURS, LONG = "plain, its default", "ours", "ours, its default"
ASLEEP, ONE = "ours, asleep", "ours, 1 thread"
DEFAULT_SPIN = "300000"  # libgomp's, where there are no more threads than cores
QUIET, LOOPS, SPINNING = "the cores as they are", "beside busy loops", "beside a spinning llama_cpp"
TRAINING = "beside a training run"
COMMAND = [sys.executable, "-c", "from tinylora_edge.cli import main; main()"]


def main() -> None:
    arguments = bench.parser(__doc__, rounds=10)
    arguments.add_argument("--spins", type=int, nargs="*", default=[], help="other rounds of libgomp's spin")
    arguments.add_argument("--work", nargs="+", choices=_worker.WORKS, help="time these in place of decoding")
    options = arguments.parse_args()
    report = bench.Report("busy", options.json)
    if options.work:
        report.record["results"] = time_work(report, options.work, options.rounds)
        report.finish()
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        bundle, _ = export(Path(name), SCALES)
        subjects = {
            PLAIN: Decoder(smollm2(), cores()),
            OURS: Decoder(bundle, cores()),
            LONG: Decoder(bundle, cores(), GOMP_SPINCOUNT=DEFAULT_SPIN),
            ASLEEP: Decoder(bundle, cores(), OMP_WAIT_POLICY="PASSIVE"),
            ONE: Decoder(bundle, 1),
        }
        for spin in options.spins:
            subjects[f"ours, spin {spin}"] = Decoder(bundle, cores(), GOMP_SPINCOUNT=str(spin))
        for subject in subjects.values():
            stack.enter_context(subject)
            subject.ask()
        results = {QUIET: measure(report, QUIET, subjects, options.rounds)}
        with busy_loops():
            results[LOOPS] = measure(report, LOOPS, subjects, options.rounds)
        with Decoder(smollm2(), cores()) as other:
            other.ask()
            other.keep_busy()
            results[SPINNING] = measure(report, SPINNING, subjects, options.rounds)
    report.say()
    quiet = results[QUIET]
    for what in ("batch", "token"):
        # The same work with the long spin: plain llama_cpp has no side path to compute.
        ratio = quiet[OURS][what]["min"] / quiet[LONG][what]["min"]
        report.target(f"{what}: ours / with libgomp's default, minima", ratio, "<=", 1.05)
        for place in (LOOPS, SPINNING):
            ratio = results[place][OURS][what]["median"] / quiet[OURS][what]["median"]
            report.target(f"{what}, {place}: ours / ours as they are, medians", ratio, "<=", 3)
    report.record["results"] = results
    report.finish()


def time_work(
    report: bench.Report, works: list[str], rounds: int
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Time what people do in each place, by turns; return the seconds by place, work and contestant."""
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        bundle, _ = export(Path(name), SCALES)
        subjects = {
            OURS: Decoder(bundle, cores(), script=_worker.__file__),
            LONG: Decoder(bundle, cores(), script=_worker.__file__, GOMP_SPINCOUNT=DEFAULT_SPIN),
        }
        for subject in subjects.values():
            stack.enter_context(subject)
        places = {QUIET: ExitStack(), LOOPS: busy_loops(), TRAINING: training(bundle, Path(name) / "run")}
        for place, others in places.items():
            with others:
                results[place] = {what: ask_in_turn(subjects, what, rounds) for what in works}
            rows = [
                [what, *(f"{found[who][key]:.1f}" for who in subjects for key in ("min", "median"))]
                for what, found in results[place].items()
            ]
            report.say()
            report.say(bench.table([f"s, {place}", f"{OURS}: min", "median", f"{LONG}: min", "median"], rows))
    report.say()
    for what in works:
        ratio = results[QUIET][what][OURS]["min"] / results[QUIET][what][LONG]["min"]
        report.target(f"{what}: ours / with libgomp's default, minima", ratio, "<=", 1.05)
        for place in (LOOPS, TRAINING):
            ratio = results[place][what][OURS]["median"] / results[QUIET][what][OURS]["median"]
            report.target(f"{what}, {place}: ours / ours as they are, medians", ratio, "<=", 3)
    return results


def ask_in_turn(subjects: dict[str, Decoder], what: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return what one work took each contestant, in seconds."""

    def asking(subject: Decoder) -> Callable[[], float]:
        return lambda: float(subject.ask(what)["seconds"])

    found = bench.interleave({name: asking(subject) for name, subject in subjects.items()}, rounds)
    return {name: bench.summarize(seconds) for name, seconds in found.items()}


@contextmanager
def busy_loops() -> Iterator[None]:
    """Keep every core busy with a loop."""
    with ExitStack() as others:
        for _ in range(cores()):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            others.callback(loop.wait)
            others.callback(loop.kill)
        yield


@contextmanager
def training(bundle: Path, run: Path) -> Iterator[None]:
    """Have `train` at work, from its first step on."""
    frame = run.with_suffix(".bin")
    words = ["train", str(bundle), "--task", "brevity", "--steps", "1000", "-o", str(frame), "--no-drift"]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        metrics = frame.with_name(f"{frame.name}.run") / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(f"the training run ended with {process.returncode}: is PyTorch installed?")
            time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def measure(
    report: bench.Report, place: str, subjects: dict[str, Decoder], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Ask every contestant in turn; return what each took: of a batch, and of a single token."""
    batches: dict[str, list[float]] = {name: [] for name in subjects}
    tokens: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            answer = subjects[name].ask()
            batches[name].append(answer["batch"])
            tokens[name] += answer["tokens"]
    result = {
        name: {"batch": bench.summarize(batches[name]), "token": bench.summarize(tokens[name])}
        for name in names
    }
    rows = [
        [name, *(f"{1e3 * r[what][key]:.1f}" for what in ("batch", "token") for key in ("min", "median"))]
        for name, r in result.items()
    ]
    report.say()
    report.say(bench.table([f"ms, {place}", "batch min", "median", "token min", "median"], rows))
    return result


if __name__ == "__main__":
    main()
