"""atomic_write: a file is seen whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from tinylora_edge.system import atomic_write
from tinylora_edge.wire.sequences import SequenceFile


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
    """mkstemp's 0600 would hide a bundle from the service that is to load it."""
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file", mode=asked) as file:
            file.write(b"new")
        assert os.umask(umask) == umask, "the umask itself is left alone"
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == expected


def test_what_is_open_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        with atomic_write(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


WRITER = textwrap.dedent(
    """
    import sys
    from tinylora_edge.system import atomic_write
    with atomic_write(sys.argv[1]) as file:
        file.write(b"half of the new conte")
        file.flush()
        print("writing", flush=True)
        sys.stdin.read()
    """
)


class TestKilledWriters:
    """What they leave is swept by the next writer of the same path, and by no other."""

    def writer(self, path):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        (left,) = path.parent.glob(f".{path.name}.*.tmp")
        os.utime(left, (1e9, 1e9))
        return child, left

    def write(self, path):
        with atomic_write(path) as file:
            file.write(b"new")

    def test_the_next_write_sweeps_it(self, tmp_path):
        child, left = self.writer(tmp_path / "file")
        child.send_signal(signal.SIGKILL)
        child.wait()
        self.write(tmp_path / "other")
        self.write(tmp_path / "fil")
        assert left.exists(), "it is of another path"
        self.write(tmp_path / "file")
        assert sorted(os.listdir(tmp_path)) == ["fil", "file", "other"]

    @pytest.mark.skipif(os.name == "nt", reason="no locks, but what is open cannot be removed")
    def test_what_a_living_process_writes_stays(self, tmp_path):
        child, left = self.writer(tmp_path / "file")
        self.write(tmp_path / "file")
        assert left.exists()
        child.communicate(b"")
        assert child.returncode == 0
        assert (tmp_path / "file").read_bytes() == b"half of the new conte"

    def test_what_is_young_or_a_link_stays(self, tmp_path):
        (tmp_path / ".file.abcd_123.tmp").write_bytes(b"half")
        (tmp_path / "precious").write_bytes(b"precious")
        (tmp_path / ".file.link_123.tmp").symlink_to("precious")
        os.utime(tmp_path / "precious", (1e9, 1e9))
        self.write(tmp_path / "file")
        assert sorted(os.listdir(tmp_path)) == [
            ".file.abcd_123.tmp",
            ".file.link_123.tmp",
            "file",
            "precious",
        ]

    def test_a_state_sweeps_at_once_and_its_own_alone(self, tmp_path):
        """Who writes one holds its lock. `*` is a name as well, and not every file."""
        own = {name: f".{name}.abcd_123.tmp" for name in ("state", "*")}
        others = [".state.x.abcd_123.tmp", ".v.bin.abcd_123.tmp", ".state.abc.tmp", ".state.ABCD_123.tmp"]
        for name in (*own.values(), *others):
            (tmp_path / name).write_bytes(b"half")
        (tmp_path / ".state.link_123.tmp").symlink_to(tmp_path / others[0])
        SequenceFile(tmp_path / "state").record(("d", "k", "s"), 5)
        left = set(os.listdir(tmp_path))
        assert left >= {own["*"], *others, ".state.link_123.tmp"}
        assert own["state"] not in left
        SequenceFile(tmp_path / "*").record(("d", "k", "s"), 5)
        left = set(os.listdir(tmp_path))
        assert left >= set(others)
        assert own["*"] not in left
