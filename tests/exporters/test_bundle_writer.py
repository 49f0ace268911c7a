"""A bundle is there whole, or not at all; the base in it is the file itself where a link works."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import support
from threadpoolctl import threadpool_info

from tinylora_edge import ExportError, load_bundle
from tinylora_edge.exporters import export, export_gguf

KILLED = """
import os, signal, sys
with new(Path(sys.argv[1])) as partial:
    (partial / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def parent(tmp_path):
    path = tmp_path / "parent"
    path.mkdir()
    return path


@pytest.fixture
def model(tiny_gguf, tmp_path):
    """A copy on the file system of the output, so that nothing else shares its inode."""
    return shutil.copy(tiny_gguf, tmp_path / "model.gguf")


def names(path):
    return sorted(item.name for item in path.iterdir())


@pytest.mark.parametrize("placed", ["hard link", "copy"])
def test_a_hard_link_where_one_works_else_a_copy(model, parent, monkeypatch, placed):
    if placed == "copy":
        error = OSError(errno.EXDEV, "Invalid cross-device link")
        monkeypatch.setattr(os, "link", Mock(side_effect=error))
    report = export_gguf(model, parent / "bundle")
    base = report.output / "base.gguf"
    assert (report.base_placed, report.output) == (placed, parent / "bundle")
    assert base.samefile(model) == (placed == "hard link")
    assert os.stat(model).st_nlink == 1 + (placed == "hard link")
    assert base.read_bytes() == Path(model).read_bytes()
    assert names(report.output) == ["base.gguf", "basis.gguf", "manifest.json"]
    assert load_bundle(report.output).check_base()


def test_blas_keeps_its_limit_until_the_last_weight_has_ended(model, parent, monkeypatch):
    """More threads wait for cores that are busy: an interrupted export went on for long."""
    real, limits = ThreadPoolExecutor.shutdown, []

    def shutdown(pool, **options):
        limits.append(max(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"))
        real(pool, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    with pytest.raises(KeyboardInterrupt):
        export.Export(model, parent / "bundle").run(progress=Mock(side_effect=KeyboardInterrupt))
    assert limits == [1]


@pytest.mark.parametrize("step", ["save_bases", "place_base", "write_json"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_an_exception_while_writing_leaves_nothing(model, parent, monkeypatch, step, error):
    real = getattr(export, step)

    def fail(*args):
        real(*args)
        raise error

    monkeypatch.setattr(export, step, fail)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export_gguf(model, parent / "bundle")
    assert names(parent) == []
    assert os.stat(model).st_nlink == 1


@pytest.mark.parametrize("limit", [0, 10_000])
def test_a_disk_that_fills_up_leaves_no_half_made_bundle(model, parent, limit):
    with support.limited("FSIZE", limit), pytest.raises(ExportError, match="bundle could not be written"):
        export_gguf(model, parent / "bundle")
    assert names(parent) == []
    export_gguf(model, parent / "bundle")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_an_output_that_exists_is_left_as_it_is(model, parent, make):
    make(parent / "bundle")
    before = os.lstat(parent / "bundle")
    with pytest.raises(ExportError, match=r"bundle exists already"):
        export_gguf(model, parent / "bundle")
    assert os.lstat(parent / "bundle")[:7] == before[:7]  # not its times: looking at a link may change one
    assert names(parent) == ["bundle"]


def test_a_parent_that_is_missing_or_no_directory(model, parent):
    (parent / "file").write_text("mine")
    for output in (parent / "none" / "bundle", parent / "file" / "bundle"):
        with pytest.raises(ExportError, match="bundle could not be written"):
            export_gguf(model, output)
    assert names(parent) == ["file"]


def test_two_exports_to_one_place(model, parent):
    with export.new_bundle(parent / "bundle") as partial:
        (partial / "mine").touch()
        with pytest.raises(ExportError, match=r"another export is writing .*bundle"):
            export_gguf(model, parent / "bundle")
        assert names(partial) == ["mine"]
    assert names(parent) == ["bundle"]
    assert names(parent / "bundle") == ["mine"]


def test_what_a_killed_export_left_is_replaced(model, parent):
    export_at = (
        f"from pathlib import Path; from tinylora_edge.exporters.export import new_bundle as new\n{KILLED}"
    )
    killed = subprocess.run([sys.executable, "-c", export_at, str(parent / "bundle")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(parent / ".bundle.partial") == ["half"]
    export_gguf(model, parent / "bundle")
    assert names(parent) == ["bundle"]
    assert names(parent / "bundle") == ["base.gguf", "basis.gguf", "manifest.json"]


def test_a_lock_that_was_removed_while_it_was_waited_for(parent, monkeypatch):
    """Whoever opened it before its holder ended has the lock of a file that nobody else sees."""
    real = os.open

    def opened(path, flags, mode=0o777, **options):
        handle = real(path, flags, mode, **options)
        if str(path).endswith(".lock"):
            os.unlink(path)
        return handle

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(ExportError, match="another export is writing"), export.new_bundle(parent / "bundle"):
        pass
    assert names(parent) == []
