"""atomic_write: a file is seen whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from tinylora_edge.writes import atomic_write


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


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


@pytest.mark.parametrize(
    ("umask", "asked", "expected"), [(0o022, 0o666, 0o644), (0o077, 0o666, 0o600), (0, 0o640, 0o640)]
)
def test_permissions_are_those_of_open(tmp_path, umask, asked, expected):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file", mode=asked) as file:
            file.write(b"new")
        assert os.umask(umask) == umask, "the umask itself is left alone"
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == expected


def test_the_umask_is_not_touched(tmp_path, monkeypatch):
    """It is the process's: a thread that sets it for a moment decides what others write."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")


def test_what_is_open_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        with atomic_write(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_what_killed_writers_left_is_removed_an_hour_later(tmp_path):
    left = [
        ".file.abcd_123.tmp",
        ".file.wxyz_987.tmp",
        ".file.x.abcd_123.tmp",
        ".file.abc.tmp",
        ".fil.abcd_123.tmp",
    ]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (1e9, 1e9))
    os.utime(tmp_path / left[1])
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert sorted(os.listdir(tmp_path)) == sorted(["file", *left[1:]])
