"""A PostgreSQL server for the tests, started by them and ended with them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import support
from servers import free_port


def binaries() -> Path | None:
    """The folder of PostgreSQL's commands: Debian's are not on the path."""
    found = [
        *Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        *([Path(at)] if (at := shutil.which("initdb")) else []),
    ]
    return found[-1].parent if found else None


class Server:
    """A server in a folder of its own, which answers on 127.0.0.1 alone."""

    def __init__(self, folder: Path, commands: Path) -> None:
        self._folder, self._commands = folder, commands
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "me", "-N").wait(120)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://me@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        # A killed process loses nothing that the kernel has, and a sync on a busy disk takes minutes.
        options = ("-p", str(self.port), "-k", "", "-h", "127.0.0.1", "-c", "fsync=off")
        self._process = None

        def starts() -> bool:  # not before the processes of one that was killed are gone, too
            if self._process is None or self._process.poll() is not None:
                self._process = self._run("postgres", "-D", str(self._folder / "data"), *options)
                time.sleep(0.2)
            return self.answers()

        support.wait_until(starts)

    def kill(self) -> None:
        """As a power cut would end it, but for what the kernel has in its buffers."""
        assert self._process is not None
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        every = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in every:  # its children, too, which would answer for a moment
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(60)
        psutil.wait_procs(every, timeout=60)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
            self._process.wait(60)

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def make(self) -> str:
        """Make another database, and return its address."""
        import psycopg

        self._made += 1
        database = f"made_{self._made}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return self.url(database)

    def _run(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        whole = [str(self._commands / command), *options]
        if os.getuid() == 0:  # which PostgreSQL refuses
            whole = ["runuser", "-u", "postgres", "--", *whole]
        log = (self._folder / f"{command}.log").open("ab")
        with log:
            return subprocess.Popen(whole, stdout=log, stderr=log, cwd=self._folder)


@contextmanager
def running() -> Iterator[Server]:
    """A server that runs; the test is skipped where there is none."""
    pytest.importorskip("psycopg_pool", reason="needs the extra postgres")
    if (commands := binaries()) is None:
        pytest.skip("there is no PostgreSQL here: install Debian's package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="tinylora-postgres-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    server = Server(folder, commands)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
