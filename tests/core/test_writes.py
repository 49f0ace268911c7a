"""atomic_write: a file is seen whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from tinylora_edge.writes import atomic_write


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
