"""`publish`: the layout, its order, and targets."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import support
from fsspec.config import set_conf_env
from fsspec.implementations.local import LocalFileSystem
from shipped import BASES, BASIS, SIGNER, frame

from tinylora_edge import Bases, BasisMismatchError, ChecksumError, FrameError, MicroVector, TransferError
from tinylora_edge.errors import ExpiredError
from tinylora_edge.shipping import Published, fetch, publish
from tinylora_edge.wire.frame import FIRST_DAY

HOME = f"{BASES.id}/default"


def tree(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(params=["", "file://"], ids=["directory", "fsspec"])
def target(request, tmp_path):
    return f"{request.param}{tmp_path / 'new' / 'root'}", lambda: tree(tmp_path / "new" / "root")


def test_the_layout_in_which_sequences_rise_and_each_is_used_once(target):
    to, content = target
    assert publish(frame(3), BASES, to) == Published(f"{HOME}/00003.bin", 3, True)
    assert content() == {f"{HOME}/00003.bin": frame(3), f"{HOME}/latest": frame(3)}
    assert publish(frame(3), BASES, to).changed is False
    for data, message in (
        (frame(2), r"latest has sequence 3, and this frame 2.*--sequence 4"),
        (frame(3, seed=1), r"another frame with sequence 3 lies in .*--sequence 4"),
    ):
        with pytest.raises(TransferError, match=message):
            publish(data, BASES, to)
    assert content() == {f"{HOME}/00003.bin": frame(3), f"{HOME}/latest": frame(3)}
    publish(frame(4), BASES, to)
    publish(frame(1), BASES, to, user="alice")
    assert content() == {
        f"{HOME}/00003.bin": frame(3),
        f"{HOME}/00004.bin": frame(4),
        f"{HOME}/latest": frame(4),
        f"{BASES.id}/alice/00001.bin": frame(1),
        f"{BASES.id}/alice/latest": frame(1),
    }


def test_a_sequence_is_used_once_also_where_the_numbered_file_is_gone(tmp_path):
    publish(frame(3), BASES, str(tmp_path))
    numbered = tmp_path / HOME / "00003.bin"
    numbered.unlink()
    before = tree(tmp_path)
    with pytest.raises(TransferError, match=r"another frame with sequence 3 lies in .*--sequence 4"):
        publish(frame(3, seed=1), BASES, str(tmp_path))
    assert tree(tmp_path) == before
    assert publish(frame(3), BASES, str(tmp_path)).changed
    (tmp_path / HOME / "latest").write_bytes(frame(3)[:-9])  # a server that replaces in more than one step
    assert publish(frame(3), BASES, str(tmp_path)).changed
    assert tree(tmp_path) == {f"{HOME}/00003.bin": frame(3), f"{HOME}/latest": frame(3)}


def test_a_frame_of_many_values_is_published_again(target):
    to, content = target
    large = Bases(support.random_factors(blocks=10, rank=32))
    data = MicroVector.zeros(large.basis(rank=32)).to_bytes(large.basis(rank=32), SIGNER)
    assert len(data) > 1 << 16
    assert publish(data, large, to).changed
    assert not publish(data, large, to).changed
    assert content()[f"{large.id}/default/latest"] == data


def test_what_was_interrupted_is_completed(target, monkeypatch):
    """Between the two files lies the only moment at which they differ; `latest` is then the old one."""
    to, content = target
    publish(frame(3), BASES, to)
    module = sys.modules["tinylora_edge.shipping.publish"]  # the face has a function of its name
    kind = module.Bucket if "://" in to else module._Directory
    usual = kind.write

    def write(self, path: str, data: bytes) -> None:
        if path.endswith("latest"):
            raise KeyboardInterrupt
        usual(self, path, data)

    monkeypatch.setattr(kind, "write", write)
    with pytest.raises(KeyboardInterrupt):
        publish(frame(4), BASES, to)
    assert content()[f"{HOME}/latest"] == frame(3)
    monkeypatch.undo()
    assert publish(frame(4), BASES, to).changed
    assert content()[f"{HOME}/latest"] == frame(4)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", FrameError),
        (frame(1)[:-2], FrameError),
        (MicroVector.zeros(BASIS).to_bytes(BASIS)[:-1] + b"?", ChecksumError),
        (frame(1)[:1] + b"none" + frame(1)[5:], BasisMismatchError),
        (MicroVector.zeros(BASIS).to_bytes(BASIS, until=FIRST_DAY), ExpiredError),
    ],
)
def test_what_is_no_frame_of_the_basis(tmp_path, data, error):
    with pytest.raises(error):
        publish(data, BASES, str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_latest_that_is_something_else_is_not_replaced(tmp_path):
    publish(frame(3), BASES, str(tmp_path))
    (tmp_path / HOME / "latest").write_bytes(b"a page that a web server made")
    with pytest.raises(TransferError, match="is not a frame of these factors"):
        publish(frame(4), BASES, str(tmp_path))
    assert (tmp_path / HOME / "latest").read_bytes().startswith(b"a page")


def test_latest_of_directions_that_this_copy_lacks(tmp_path):
    learned = BASES.with_projection(support.learned(BASES.factors, 5))
    vector = MicroVector(np.zeros(5), sequence=3)
    publish(vector.to_bytes(learned.basis(numbers=5), SIGNER), learned, str(tmp_path))
    assert publish(frame(4), BASES, str(tmp_path)).changed


def test_targets_that_are_none(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for to, message in {"nowhere://x/y": "nowhere", "ftp://127.0.0.1:1/x": "open ftp", "": "empty"}.items():
        with pytest.raises(TransferError, match=message):
            publish(frame(1), BASES, to)
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "file")):
        publish(frame(1), BASES, str(tmp_path / "file"))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "to",
    ["memory://", "memory://v", "://x", ":/x", "s3:/b/v", "memory:/v", "simplecache::file://v", "a@b:/v"],
)
def test_what_nobody_could_read_is_refused(tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TransferError, match="no place that others can read"):
        publish(frame(1), BASES, to)
    assert os.listdir(tmp_path) == []


def test_what_is_read_back_is_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalFileSystem, "pipe_file", lambda self, path, data: Path(path).touch())
    with pytest.raises(TransferError, match="latest was written, and something else is read there"):
        publish(frame(1), BASES, f"file://{tmp_path}")


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "https", "nowhere", "", "u:secret@x"])
@pytest.mark.parametrize("user", ["bob:secret", "bob:se@cret", "bob:sec/ret", "bob:secret?", ":secret"])
def test_no_message_has_a_password(scheme, user):
    to = f"{scheme}://{user}@127.0.0.1:1/v"
    for call in (lambda: publish(frame(1), BASES, to), lambda: fetch(to, BASES, deadline=1)):
        with pytest.raises(TransferError, match=r"127\.0\.0\.1:1/v") as caught:
            call()
        for text in traceback.format_exception(caught.value):
            assert "bob" not in text
            assert "cret" not in text


def test_a_password_has_a_place(monkeypatch):
    with pytest.raises(TransferError, match=r"ftp://127\.0\.0\.1:1/v has a password.*FSSPEC_FTP_PASSWORD"):
        publish(frame(1), BASES, "ftp://bob:secret@127.0.0.1:1/v")
    monkeypatch.setenv("FSSPEC_FTP_PASSWORD", "secret")
    set_conf_env(conf := {})
    assert conf == {"ftp": {"password": "secret"}}


def test_files_can_be_read_by_a_web_server(tmp_path):
    before = os.umask(0o022)
    try:
        publish(frame(1), BASES, str(tmp_path))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.bin")} == {0o644}
