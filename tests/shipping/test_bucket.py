"""Buckets: what `publish` writes through fsspec, `fetch` reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from shipped import BASES, frame

from tinylora_edge import TransferError
from tinylora_edge.shipping import Fetched, fetch, publish


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server, whose address and keys are in the environment alone."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/vectors"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def check(to: str) -> None:
    with pytest.raises(TransferError, match="nothing is published there"):
        fetch(to, BASES)
    publish(frame(1), BASES, to)
    assert fetch(to, BASES) == Fetched(frame(1), None)
    publish(frame(2), BASES, f"{to}/")
    publish(frame(7), BASES, to, user="alice")
    assert fetch(f"{to}/", BASES).data == frame(2)
    assert fetch(to, BASES, "alice").data == frame(7)
    with pytest.raises(TransferError, match="latest has sequence 7, and this frame 3"):
        publish(frame(3), BASES, to, user="alice")


@pytest.mark.slow
def test_a_bucket_of_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(s3)
    with pytest.raises(TransferError, match=r"s3://none/v/.*NoSuchBucket|nothing is published"):
        fetch("s3://none/v", BASES)


def test_a_place_on_this_machine(tmp_path: Path) -> None:
    to = f"file://{tmp_path}"
    check(to)
    latest = tmp_path / BASES.id / "alice" / "latest"
    latest.write_bytes(os.urandom(1000))
    with pytest.raises(TransferError, match=r"alice/latest has more than \d+ bytes, the longest frame"):
        fetch(to, BASES, "alice")
    latest.unlink()
    latest.mkdir()
    with pytest.raises(TransferError, match="alice/latest cannot be read"):
        fetch(to, BASES, "alice")
