"""atomic_write: a file is seen whole or not at all. open_file: whatever is no file is not waited for."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import windows

from tinylora_edge import TinyLoraError, writes
from tinylora_edge.cli import keyfiles, vectors
from tinylora_edge.exporters.weights.hf import read_safetensors
from tinylora_edge.runtime.model import vector_bytes
from tinylora_edge.serve.access import ApiKeys
from tinylora_edge.shipping.publish import _Directory
from tinylora_edge.tasks import load_task
from tinylora_edge.writes import atomic_write, locked


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_exception_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fail_halfway() -> None:
        with atomic_write(str(path)) as file:
            file.write(b"half of the new conte")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert (path.read_bytes() if path.exists() else None) == old
    assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    with pytest.raises(FileNotFoundError) as failed, atomic_write(tmp_path / "none" / "file"):
        pass
    assert failed.value.filename == str(tmp_path / "none" / "file"), "not the temporary one"


@pytest.mark.parametrize(("umask", "mode", "expected"), [(0o022, 0o666, 0o644), (0o077, 0o666, 0o600)])
def test_permissions_are_those_of_open(tmp_path, monkeypatch, umask, mode, expected):
    """Though the umask is not touched: it is the process's, and decides what other threads write."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
            with atomic_write(tmp_path / "file", mode=mode) as file:
                file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


@pytest.mark.parametrize(
    "read",
    [
        lambda pipe: vectors.read(str(pipe)),
        vector_bytes,
        lambda pipe: keyfiles.verifiers([pipe]),
        ApiKeys.read,
        lambda pipe: load_task(str(pipe)),
        read_safetensors,
        lambda pipe: _Directory(str(pipe.parent)).read(pipe.name),
    ],
)
def test_no_reader_waits_for_a_pipe(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.jsonl")  # and nobody ever writes into it
    (tmp_path / "zeros.jsonl").symlink_to("/dev/zero")  # which has no end
    for name in ("pipe.jsonl", "zeros.jsonl"):
        with pytest.raises((OSError, TinyLoraError), match="it is a pipe or a device"):
            read(tmp_path / name)


def test_a_lock_on_windows_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits waits for as long as it takes, and who does not is told as on other systems."""
    monkeypatch.setattr(writes, "os", windows.Os("os"))
    monkeypatch.setitem(sys.modules, "msvcrt", windows.Msvcrt("msvcrt"))
    slept: list[float] = []
    path = tmp_path / "file"
    with ExitStack() as held:
        held.enter_context(locked(path))
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 30:
                held.close()

        monkeypatch.setattr(writes.time, "sleep", sleep)
        with locked(path):
            assert len(slept) == 30
    with locked(path, wait=False, keep=False):
        pass
    assert list(tmp_path.iterdir()) == []
