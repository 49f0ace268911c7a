"""Every reader under attack: whatever comes in, it is read, or refused with an error of the tree.

    python tests/fuzzing/campaign.py --seconds 60 --harness basis --harness frame
    python tests/fuzzing/campaign.py --replay out/fuzzing/basis-1 --harness basis

Each harness has a process of its own, one a core at a time. Inputs follow from the seed. A violation is any
other error, an input of less than 1 MB that takes a second of the processor or 64 MB more memory, and a
harness that makes nothing that its reader takes. What was found lies in out/fuzzing.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness import Harness

HERE = Path(__file__).parent
FINDINGS = Path("out/fuzzing")
FAMILIES = tuple(f"{name}_readers" for name in ("wire", "gguf", "document", "request", "native"))
SECONDS = 1.0
MEMORY = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--harness", action="append", help="of one reader; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other inputs")
    parser.add_argument("--replay", type=Path, help="read this file instead, once")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    warnings.simplefilter("ignore")
    FINDINGS.mkdir(parents=True, exist_ok=True)
    families = [__import__(family) for family in FAMILIES]
    readers = {harness.name: harness for family in families for harness in family.HARNESSES}
    names = options.harness or list(readers)
    if unknown := [name for name in names if name not in readers]:
        parser.error(f"there is no harness {unknown[0]}: choose from {', '.join(readers)}")
    if options.replay:
        began = time.process_time()
        word = "accepted" if readers[names[0]].accepts(options.replay.read_bytes()) else "refused"
        print(f"{word} in {time.process_time() - began:.3f} s")
    elif options.worker:
        _throw(readers[names[0]], options.seconds, options.seed)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            held = list(threads.map(lambda name: _held(name, options), names))
        if not all(held):
            failed = [name for name, fine in zip(names, held, strict=True) if not fine]
            sys.exit(f"violations: {', '.join(failed)}; the inputs are in {FINDINGS}")


def _held(name: str, options: argparse.Namespace) -> bool:
    """Run one harness in a process, print its line, and tell whether it held."""
    command = [sys.executable, __file__, "--worker", "--harness", name]
    command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout or done.stderr).strip().splitlines()[-1:]
    print(f"{name:16} {'held' if done.returncode == 0 else 'VIOLATION'}  {' '.join(last)}", flush=True)
    if done.returncode:
        (FINDINGS / f"{name}.log").write_text(done.stdout + done.stderr[-20_000:])
    return done.returncode == 0


def _throw(harness: Harness, seconds: float, seed: int) -> None:
    harness.accepts(b"")  # what a harness makes once is not the reader's time
    until, counts = time.monotonic() + seconds, [0, 0]
    for number, case in enumerate(harness.cases(seed)):
        try:
            counts[_accepts(harness, case)] += 1
        except BaseException:
            (FINDINGS / f"{harness.name}-{number}").write_bytes(case)
            raise
        if time.monotonic() > until:
            break
    assert all(counts), f"{counts[1]} inputs accepted, {counts[0]} refused: the harness tests nothing"
    print(f"{counts[1]:,} accepted, {counts[0]:,} refused")


def _accepts(harness: Harness, data: bytes) -> bool:
    size, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    accepted = harness.accepts(data)
    spent = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) << 10
    assert spent < SECONDS, f"{len(data)} bytes took {spent:.2f} s"
    assert grown < MEMORY, f"{len(data)} bytes took {grown >> 20} MB"
    return accepted


if __name__ == "__main__":
    main()
