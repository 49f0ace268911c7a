"""Injection of faults into writers: at every call that changes a file, in a process of its own.

    python tests/faults/injection.py --rounds 5

For each writer the calls of one undisturbed run are counted. Then a fork of this process runs it once for
each of them: it is killed there, or the disk is full from there on. What is found afterwards must be whole,
and doing it again must complete it. Short reads and writes, and a clock that jumps, disturb every call at
once, and must change nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / part) for part in ("fuzzing", "cli", "."))]

from writers import Progress, Writer, writers  # noqa: E402

COUNT, KILL, FULL, SHORT, CLOCK = range(5)
FAILED = 7  # the exit status of a writer that was refused with an error, as it should be


class Injection:
    """A library of faults in this process, and what it did to writers.

    Attributes:
        done: number of faults of each kind.
        losses: what did not hold, in words.
    """

    def __init__(self, library: str, root: Path) -> None:
        self._library, self._root = ctypes.CDLL(library), root
        self.done = {"kills": 0, "full disks": 0, "short reads and writes": 0, "jumping clocks": 0}
        self.losses: list[str] = []

    def run(self, writer: Writer) -> None:
        """Disturb a writer at every call, and in the ways that disturb all calls."""
        for at in range(1, self._count(writer) + 1):
            self._disturb(writer, KILL, at, "kills")
            self._disturb(writer, FULL, at, "full disks")
        for mode, name in ((SHORT, "short reads and writes"), (CLOCK, "jumping clocks")):
            self._disturb(writer, mode, 0, name)

    def _count(self, writer: Writer) -> int:
        with tempfile.TemporaryDirectory(dir=self._root) as name:
            folder = Path(name)
            writer.prepare(folder)
            self._arm(COUNT, 0, folder)
            writer.act(folder, Progress())
            return int(self._library.faults_disarm())

    def _arm(self, mode: int, at: int, folder: Path) -> None:
        self._library.faults_arm(mode, ctypes.c_long(at), os.fsencode(folder))

    def _disturb(self, writer: Writer, mode: int, at: int, name: str) -> None:
        folder, progress = Path(tempfile.mkdtemp(dir=self._root)), Progress()
        writer.prepare(folder)
        status = self._act(writer, mode, at, folder, progress)
        self.done[name] += 1
        expected = {KILL: (-signal.SIGKILL,), FULL: (FAILED, 0), SHORT: (0,), CLOCK: (0,)}
        try:
            assert status in expected[mode], f"it ended with {status}"
            assert status or progress.done == writer.steps
            writer.check(folder, progress.done)
            before = progress.done
            writer.act(folder, progress)
            assert progress.done == writer.steps >= before, "doing it again did not complete it"
            writer.check(folder, progress.done)
        except BaseException as error:
            self.losses.append(f"{writer.name}, {name}, call {at}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)

    def _act(self, writer: Writer, mode: int, at: int, folder: Path, progress: Progress) -> int:
        """Run the writer in a fork, and return its exit status, negative for a signal."""
        child = os.fork()
        if child == 0:
            status = 99
            try:
                self._arm(mode, at, folder)
                writer.act(folder, progress)
                status = 0
            except Exception as error:
                known = isinstance(error, OSError) or type(error).__module__ == "tinylora_edge.errors"
                status = FAILED if known else 98
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def build(folder: Path) -> Path:
    """Compile the faults, which needs Linux and a C compiler."""
    library = folder / "faults.so"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *flags, str(HERE / "faults.c"), "-o", str(library), "-ldl"], check=True)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often every call is disturbed")
    parser.add_argument("--writer", default="", help="whose name has this in it; all of them by default")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
        _begin_again(options)
    library = os.environ["LD_PRELOAD"]
    with tempfile.TemporaryDirectory() as name:
        injection = Injection(library, Path(name).resolve())
        for writer in writers(options.url) * options.rounds:
            if options.writer in writer.name:
                injection.run(writer)
    print(json.dumps({**injection.done, "losses": injection.losses}))
    sys.exit(bool(injection.losses))


def _begin_again(options: argparse.Namespace) -> None:
    """Build the faults, publish a vector on a server, and run this file once more under the faults."""
    import servers
    from writers import BASES, frame

    from tinylora_edge.shipping.publish import publish

    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        publish(frame(7), BASES, f"{folder}/site")
        with servers.static(Path(folder) / "site") as (url, _):
            command = [sys.executable, __file__, "--rounds", str(options.rounds), "--url", url]
            command += ["--writer", options.writer]
            done = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(library)}, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
