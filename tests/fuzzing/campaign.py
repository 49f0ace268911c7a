"""A campaign: atheris drives harnesses for a time, watches coverage, and stops at the first violation.

    python tests/fuzzing/campaign.py --seconds 600 --harness basis --harness frame
    python tests/fuzzing/campaign.py --replay finding.bin --harness basis

Each harness runs in a process of its own, with the code of `tinylora_edge` instrumented. It fails for an
error that is not in the package's tree, for an input of less than 1 MB that makes it grow by over 64 MB, and
for one that takes over a second of a process's time where nothing is instrumented, which takes up to ten
times as long. What it found lies in the folder `--findings`.
"""

from __future__ import annotations

import argparse
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness import Harness

HERE = Path(__file__).parent
PATIENCE = 300  # seconds, with what does not end
CORPUS_BYTES = 8192  # of what is kept of one harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--harness", action="append", help="of one reader; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--runs", type=int, default=-1, help="executions for each harness, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer: another one, other executions")
    parser.add_argument(
        "--longest", type=int, help="bytes of an input; without it as many as limits hold for"
    )
    parser.add_argument("--findings", type=Path, default=Path("out/fuzzing"))
    parser.add_argument("--keep", action="store_true", help="check in what gave new coverage, in a few kB")
    parser.add_argument("--replay", type=Path, help="read this file instead, once")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if options.worker:
        _work(options.worker, options)
    from readers import READERS

    names = options.harness or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"there is no harness {unknown[0]}: choose from {', '.join(READERS)}")
    if options.plain:
        Plain.serve(READERS[names[0]])
        return
    if options.replay:
        data, began = options.replay.read_bytes(), time.process_time()
        word = "accepted" if READERS[names[0]].accepts(data) else "refused"
        print(f"{word} in {time.process_time() - began:.3f} s")
        return
    print(f"{'harness':16} {'executions':>11} {'CPU s':>7} {'features':>9}  outcome", flush=True)
    failed = [name for name in names if not _campaign(name, options)]
    if failed:
        sys.exit(f"violations: {', '.join(failed)}; the inputs are in {options.findings}")


def _campaign(name: str, options: argparse.Namespace) -> bool:
    """Run one harness in a process, print its line, and tell whether it held."""
    options.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        from readers import READERS

        harness, random = READERS[name], Random(0)
        for number, seed in enumerate([*harness.corpus(), *(harness.make(random) for _ in range(16))]):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        command = [sys.executable, __file__, "--worker", name, "--corpus", corpus]
        command += ["--seconds", str(options.seconds), "--runs", str(options.runs)]
        command += ["--seed", str(options.seed), "--longest", str(options.longest or 0)]
        began = _processor_time()
        done = subprocess.run([*command, "--findings", str(options.findings)], capture_output=True, text=True)
        spent = _processor_time() - began  # other work may keep the cores busy
        counts = re.findall(r"^#(\d+)\s", done.stderr, re.M)
        executions = int((re.findall(r"number_of_executed_units: (\d+)", done.stderr) or counts or ["0"])[-1])
        features = (re.findall(r"ft: (\d+)", done.stderr) or ["0"])[-1]
        held = done.returncode == 0
        if not held:
            (options.findings / f"{name}.log").write_text(done.stderr[-20_000:])
        outcome = "held" if held else f"VIOLATION (status {done.returncode})"
        print(f"{name:16} {executions:11,} {spent:7,.0f} {features:>9}  {outcome}", flush=True)
        if options.keep and held:
            _keep(name, Path(corpus))
    return held


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _keep(name: str, found: Path) -> None:
    """Check in the smallest inputs that gave new coverage, the first 10 of each size, in a few kB."""
    lines, left = [], CORPUS_BYTES
    for path in sorted(found.iterdir(), key=lambda each: (each.stat().st_size, each.name)):
        data = path.read_bytes()
        if path.name.startswith("seed") or not data or len(data) > left // 8:
            continue
        lines.append(data.hex())
        left -= len(data)
    (HERE / "corpus" / f"{name}.txt").write_text("\n".join(lines[:400]) + "\n")


class Plain:
    """A process that reads as users do: what is instrumented takes up to ten times as long."""

    def __init__(self, name: str) -> None:
        self._command = [sys.executable, __file__, "--harness", name, "--plain"]
        self._process: subprocess.Popen[bytes] | None = None

    def seconds(self, data: bytes) -> float:
        """Return how long it reads bytes; infinity where it ends at them."""
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(len(data).to_bytes(8, "big") + data)
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        return float(said) if said else float("inf")

    @staticmethod
    def serve(harness: Harness) -> None:
        """Be that process, until its standard input ends."""
        harness.accepts(b"")  # what a harness makes once is not the reader's time
        while size := sys.stdin.buffer.read(8):
            data = sys.stdin.buffer.read(int.from_bytes(size, "big"))
            signal.alarm(PATIENCE)
            began = time.process_time()
            harness.accepts(data)
            print(time.process_time() - began, flush=True)
            signal.alarm(0)


def _work(name: str, options: argparse.Namespace) -> None:
    """Be the process of one harness: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["tinylora_edge"]):
        from readers import READERS

    import harness as limits

    reader, plain = READERS[name], Plain(name)

    def run(data: bytes) -> None:
        size, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        reader.accepts(data)
        spent = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) << 10
        if spent > limits.SECONDS and (spent := plain.seconds(data)) > limits.SECONDS:
            raise AssertionError(f"{len(data)} bytes took {spent:.2f} s")
        if grown > limits.MEMORY:
            raise AssertionError(f"{len(data)} bytes took {grown >> 20} MB")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return reader.mutated(data, random)[:most]
        out = atheris.Mutate(data, min(most, max(64, 2 * len(data))))
        return reader.mend(out)[:most] if random.random() < 0.7 else out

    arguments = ["fuzz", options.corpus, f"-max_total_time={options.seconds}", f"-runs={options.runs}"]
    arguments += [
        f"-artifact_prefix={options.findings}/{name}-",
        f"-max_len={options.longest or limits.LARGEST}",
    ]
    arguments += [
        "-print_final_stats=1",
        f"-timeout={PATIENCE}",
        "-rss_limit_mb=3000",
        "-len_control=0",
        f"-seed={options.seed}",
    ]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
