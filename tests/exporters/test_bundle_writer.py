"""A bundle is there whole, or not at all; the base in it is the file itself where a link works."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinylora_edge import ExportError, load_bundle
from tinylora_edge.exporters import export, export_gguf


@pytest.fixture
def parent(tmp_path):
    path = tmp_path / "parent"
    path.mkdir()
    return path


@pytest.fixture
def model(llama_gguf, tmp_path):
    """A copy on the file system of the output, so that nothing else shares its inode."""
    return shutil.copy(llama_gguf, tmp_path / "model.gguf")


def names(path):
    return sorted(item.name for item in path.iterdir())


# How the base comes in


def test_a_hard_link_where_one_works(model, parent):
    report = export_gguf(model, parent / "bundle")
    assert report.base_placed == "hard link"
    assert (parent / "bundle" / "base.gguf").samefile(model)
    assert os.stat(model).st_nlink == 2
    assert report.output == parent / "bundle"


@pytest.fixture
def no_links(monkeypatch):
    def link(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)


def test_a_copy_where_no_link_works(model, parent, no_links):
    report = export_gguf(model, parent / "bundle")
    base = parent / "bundle" / "base.gguf"
    assert report.base_placed == "copy"
    assert not base.samefile(model)
    assert base.read_bytes() == Path(model).read_bytes()
    assert os.stat(model).st_nlink == 1
    assert names(parent / "bundle") == ["base.gguf", "basis.gguf", "manifest.json"]
    assert load_bundle(parent / "bundle").check_base()


# All or nothing


class Interrupted(BaseException):
    """As Ctrl-C is: no Exception."""


@pytest.mark.parametrize("step", ["save_bases", "place_base", "_manifest"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Interrupted()])
def test_an_exception_while_writing_leaves_nothing(model, parent, monkeypatch, step, error):
    real = getattr(export, step)

    def fail(*args):
        real(*args)
        raise error

    monkeypatch.setattr(export, step, fail)
    expected = ExportError if isinstance(error, OSError) else Interrupted
    with pytest.raises(expected):
        export_gguf(model, parent / "bundle")
    assert names(parent) == []
    assert os.stat(model).st_nlink == 1


@contextmanager
def file_size_limit(limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 1000, 10_000])
def test_a_disk_that_fills_up_leaves_no_half_made_bundle(model, parent, limit):
    with file_size_limit(limit), pytest.raises(ExportError, match="bundle could not be written"):
        export_gguf(model, parent / "bundle")
    assert names(parent) == []
    export_gguf(model, parent / "bundle")
    assert names(parent) == ["bundle"]


# Where it may be written


@pytest.mark.parametrize("kind", ["directory", "file", "bundle", "broken link"])
def test_an_output_that_exists_is_left_as_it_is(model, parent, kind):
    output = parent / "bundle"
    if kind == "directory":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    elif kind == "bundle":
        export_gguf(model, output)
    else:
        output.symlink_to("nowhere")
    before = os.lstat(output)
    with pytest.raises(ExportError, match=r"bundle exists already"):
        export_gguf(model, output)
    assert os.lstat(output) == before
    assert names(parent) == ["bundle"]


def test_a_parent_that_is_missing_or_no_directory(model, parent):
    (parent / "file").write_text("mine")
    for output in (parent / "none" / "bundle", parent / "file" / "bundle"):
        with pytest.raises(ExportError, match="cannot write to"):
            export_gguf(model, output)
    assert names(parent) == ["file"]


# What another export writes, or a killed one left


def test_two_exports_to_one_place(model, parent):
    left = parent / ".bundle.partial"
    left.mkdir()
    with pytest.raises(ExportError, match=r"\.bundle\.partial is there.*Remove it then"):
        export_gguf(model, parent / "bundle")
    assert names(parent) == [left.name]
    left.rmdir()
    export_gguf(model, parent / "bundle")
