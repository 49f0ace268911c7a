"""Downloads: the real client over HTTP against a hub on loopback, with all that goes wrong on the way."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
from hub_server import HubServer

from tinylora_edge import HubError
from tinylora_edge.exporters.hub.cache import Hub

REPO, FILE = "org/tiny-GGUF", "tiny-Q8_0.gguf"
CHUNK = 10 * 1024 * 1024  # the client writes so much at a time
LARGE = random.Random(0).randbytes(CHUNK + CHUNK // 2)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", os.devnull)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub_server.serve() as running:
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(endpoint=server.url, cache=tmp_path / "cache")


@pytest.fixture
def tiny(server: HubServer, llama_gguf: Path) -> str:
    """A repository with a small model; its commit."""
    return server.add(REPO, {FILE: llama_gguf, "config.json": b'{"model_type": "llama"}'})


def fetch(hub: Hub, *names: str, revision: str | None = None) -> Path:
    return hub.fetch(hub.repository(REPO, revision), names, revision=revision)


def blobs(hub: Hub) -> list[str]:
    return sorted(path.name for path in hub.cache.glob("models--*/blobs/*"))


def partial(hub: Hub) -> Path:
    return hub.cache / "models--org--tiny-GGUF" / "blobs" / f"{hashlib.sha256(LARGE).hexdigest()}.incomplete"


# What goes well


def test_files_arrive_and_progress_is_told(hub: Hub, server: HubServer, tiny: str, llama_gguf: Path) -> None:
    told: list[tuple[str, int, int]] = []
    listing = hub.repository(REPO)
    assert listing.commit == tiny
    snapshot = hub.fetch(listing, [FILE, "config.json"], lambda *step: told.append(step))

    assert (snapshot / FILE).read_bytes() == llama_gguf.read_bytes()
    assert (snapshot / "config.json").read_bytes() == b'{"model_type": "llama"}'
    total = llama_gguf.stat().st_size + 23
    assert told[-1] == ("config.json", total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert hub.sha256(listing, FILE) == hashlib.sha256(llama_gguf.read_bytes()).hexdigest()
    assert hub.sha256(listing, "config.json") == hashlib.sha256(b'{"model_type": "llama"}').hexdigest()


def test_what_is_there_is_not_downloaded_again(hub: Hub, server: HubServer, tiny: str) -> None:
    fetch(hub, FILE)
    assert not hub.is_cached(hub.repository(REPO), "config.json")
    server.requests.clear()
    assert hub.is_cached(hub.repository(REPO), FILE)
    fetch(hub, FILE)
    assert server.downloads == []
    assert {request.path for request in server.requests} == {f"/api/models/{REPO}"}


def test_the_cache_is_the_clients_own(hub: Hub, server: HubServer, tiny: str) -> None:
    def theirs(name: str, **options: object) -> str:
        return huggingface_hub.hf_hub_download(
            REPO, name, endpoint=server.url, cache_dir=hub.cache, **options
        )

    ours = fetch(hub, FILE) / FILE
    assert Path(theirs(FILE, local_files_only=True)) == ours
    theirs("config.json")
    server.requests.clear()
    fetch(hub, FILE, "config.json")
    assert server.downloads == []


def test_the_same_blob_of_a_new_commit_is_not_downloaded_again(
    hub: Hub, server: HubServer, tiny: str, llama_gguf: Path
) -> None:
    fetch(hub, FILE)
    newer = server.add(REPO, {FILE: llama_gguf, "README.md": b"new"})
    server.requests.clear()
    snapshot = fetch(hub, FILE)
    assert snapshot.name == newer
    assert (snapshot / FILE).read_bytes() == llama_gguf.read_bytes()
    assert server.downloads == []


@pytest.mark.parametrize("revision", ["v1", "commit"])
def test_a_pinned_revision(hub: Hub, server: HubServer, revision: str) -> None:
    first = server.add(REPO, {FILE: b"old"}, tag="v1")
    server.add(REPO, {FILE: b"new"})
    revision = first if revision == "commit" else revision
    assert (fetch(hub, FILE, revision=revision) / FILE).read_bytes() == b"old"
    assert (fetch(hub, FILE) / FILE).read_bytes() == b"new"
    cached = hub.cached(REPO, revision)
    assert cached is not None
    assert cached.commit == first


def test_a_token_goes_to_the_hub_alone(
    hub: Hub, server: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos[REPO].gated, server.repos[REPO].readers = True, {"hf_secret"}
    fetch(hub, FILE)
    (sent,) = server.gets(FILE)
    assert sent.host.startswith("localhost")  # another origin
    assert sent.authorization is None
    assert any(r.authorization == "Bearer hf_secret" for r in server.requests if "/resolve/" in r.path)


def test_files_in_xet_come_over_http(hub: Hub, server: HubServer, tiny: str) -> None:
    pytest.importorskip("hf_xet")  # with it the client alone would go to Xet
    server.xet = True
    fetch(hub, FILE)
    assert server.downloads == [FILE]
    assert not any("xet" in request.path for request in server.requests)


# Interrupted downloads


def test_a_cut_connection_is_resumed(hub: Hub, server: HubServer) -> None:
    server.add(REPO, {FILE: LARGE})
    server.cut[FILE] = CHUNK + 1000
    assert (fetch(hub, FILE) / FILE).read_bytes() == LARGE
    assert [request.range for request in server.gets(FILE)] == [None, f"bytes={CHUNK}-"]


def test_a_killed_download_goes_on_where_it_stopped(hub: Hub, server: HubServer) -> None:
    server.add(REPO, {FILE: LARGE})
    server.stall[FILE] = CHUNK + 1000
    code = (
        "import sys; from pathlib import Path; from tinylora_edge.exporters.hub.cache import Hub\n"
        "hub = Hub(endpoint=sys.argv[1], cache=Path(sys.argv[2]))\n"
        "hub.fetch(hub.repository(sys.argv[3]), [sys.argv[4]])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, server.url, str(hub.cache), REPO, FILE])
    deadline = time.monotonic() + 60
    while not (partial(hub).exists() and partial(hub).stat().st_size == CHUNK):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert hub.cached(REPO) is None  # nobody sees a part of a file

    server.stall.clear()
    server.requests.clear()
    assert (fetch(hub, FILE) / FILE).read_bytes() == LARGE
    assert [request.range for request in server.gets(FILE)] == [f"bytes={CHUNK}-"]
    assert blobs(hub) == [hashlib.sha256(LARGE).hexdigest()]


def test_a_server_without_ranges_starts_again(hub: Hub, server: HubServer) -> None:
    server.add(REPO, {FILE: LARGE})
    partial(hub).parent.mkdir(parents=True)
    partial(hub).write_bytes(LARGE[:1000])
    server.ignore_range = True
    assert (fetch(hub, FILE) / FILE).read_bytes() == LARGE


def test_a_partial_file_that_is_too_long_is_thrown_away(hub: Hub, server: HubServer) -> None:
    server.add(REPO, {FILE: LARGE})
    partial(hub).parent.mkdir(parents=True)
    partial(hub).write_bytes(LARGE + b"more")
    assert (fetch(hub, FILE) / FILE).read_bytes() == LARGE


def test_a_partial_file_of_something_else_is_refused_once(hub: Hub, server: HubServer) -> None:
    server.add(REPO, {FILE: LARGE})
    partial(hub).parent.mkdir(parents=True)
    partial(hub).write_bytes(bytes(1000))
    with pytest.raises(HubError, match="SHA-256"):
        fetch(hub, FILE)
    assert blobs(hub) == []
    assert (fetch(hub, FILE) / FILE).read_bytes() == LARGE


# Files that are not what the hub says


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_size(hub: Hub, server: HubServer, tiny: str, llama_gguf: Path, change: int) -> None:
    data = llama_gguf.read_bytes()
    server.served[FILE] = data[:-1] if change < 0 else data + b"x"
    with pytest.raises(HubError, match=f"{len(data) + change:,} bytes, but the hub states {len(data):,}"):
        fetch(hub, FILE)
    assert blobs(hub) == []
    server.served.clear()
    fetch(hub, FILE)


@pytest.mark.parametrize(("name", "kind"), [(FILE, "SHA-256"), ("config.json", "Git SHA-1")])
def test_a_wrong_hash(hub: Hub, server: HubServer, tiny: str, name: str, kind: str) -> None:
    data = bytearray(server.repos[REPO].commits[tiny][name])
    data[len(data) // 2] ^= 1
    server.served[name] = bytes(data)
    etag = hub.repository(REPO).files[name].etag
    with pytest.raises(HubError, match=f"{kind} [0-9a-f]+, but the hub states {etag}"):
        fetch(hub, name)
    assert blobs(hub) == []
    assert hub.cached(REPO) is None


def test_a_file_in_the_cache_that_was_cut(hub: Hub, server: HubServer, tiny: str) -> None:
    path = fetch(hub, FILE) / FILE
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(HubError, match=rf"damaged: it has 1,000 bytes.*{size:,}") as caught:
        fetch(hub, FILE)
    assert str(path) in str(caught.value)


def test_a_listed_file_that_is_gone(hub: Hub, server: HubServer, tiny: str) -> None:
    server.gone.add(FILE)
    with pytest.raises(HubError, match=f"lists {FILE}, but does not have it"):
        fetch(hub, FILE)


def test_a_file_that_is_not_listed(hub: Hub, tiny: str) -> None:
    with pytest.raises(HubError, match=f"{tiny[:12]} has no file other.gguf"):
        fetch(hub, "other.gguf")


@pytest.mark.parametrize("name", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf"])
def test_a_name_that_leads_out_of_the_cache_is_not_taken(hub: Hub, server: HubServer, name: str) -> None:
    server.add(REPO, {name: b"evil"})
    assert hub.repository(REPO).files == {}


# Access


def test_a_gated_model_without_a_token(hub: Hub, server: HubServer, tiny: str) -> None:
    server.repos[REPO].gated = True
    with pytest.raises(HubError, match="gated: accept its licence") as caught:
        fetch(hub, FILE)
    for part in (f"{server.url}/{REPO}", "hf auth login", "HF_TOKEN", "no token is set"):
        assert part in str(caught.value)


def test_a_gated_model_with_a_token_that_has_no_access(
    hub: Hub, server: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repos[REPO].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match="with the account that the token in use belongs to") as caught:
        fetch(hub, FILE)
    assert "hf_other" not in str(caught.value)


def test_an_unknown_repository(hub: Hub) -> None:
    with pytest.raises(HubError, match=r"has no model org/tiny-GGUF, or a private one"):
        hub.repository(REPO)


def test_an_unknown_revision(hub: Hub, tiny: str) -> None:
    with pytest.raises(HubError, match="org/tiny-GGUF has no revision 'v9'"):
        hub.repository(REPO, "v9")


@pytest.mark.parametrize("name", ["a--b/c", "org/-x", "a/b/c", "org/x.git"])
def test_a_name_that_no_repository_has(hub: Hub, name: str) -> None:
    with pytest.raises(HubError, match="is no name of a repository: expected 'org/name'"):
        hub.repository(name)


# Without a network


@pytest.fixture
def closed() -> str:
    """An endpoint where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_no_network_and_nothing_cached(closed: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=f"{closed} cannot be reached") as caught:
        Hub(endpoint=closed, cache=tmp_path).repository(REPO)
    for part in (str(tmp_path), "local files", "--base", "HF_HUB_CACHE"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_and_all_in_the_cache(hub: Hub, closed: str, tiny: str, server: HubServer) -> None:
    fetch(hub, FILE, "config.json")
    offline = Hub(endpoint=closed, cache=hub.cache)
    listing = offline.repository(REPO)
    assert listing.cached
    assert f"{closed} cannot be reached" in listing.reason
    assert listing.commit == tiny
    assert set(listing.files) == {FILE, "config.json"}
    assert offline.fetch(listing, [FILE]) == fetch(hub, FILE)
    assert offline.sha256(listing, FILE) == hub.sha256(hub.repository(REPO), FILE)


def test_a_hub_that_is_down_is_no_network(hub: Hub, server: HubServer, tiny: str) -> None:
    fetch(hub, FILE)
    server.broken = 503
    assert hub.repository(REPO).reason == f"{server.url} answers with 503"
    with pytest.raises(HubError, match="answers with 503"):
        hub.repository("org/other")


def test_offline_by_choice(hub: Hub, server: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"not in the cache .*, and HF_HUB_OFFLINE forbids"):
        hub.repository(REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    fetch(hub, FILE)
    server.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    listing = hub.repository(REPO)
    assert (listing.cached, listing.reason) == (True, "")
    assert hub.fetch(listing, [FILE]).name == tiny
    with pytest.raises(HubError, match=r"the cache of .* has no file config\.json"):
        hub.fetch(listing, ["config.json"])
    assert server.requests == []


def test_a_network_that_goes_away_during_a_download(
    hub: Hub, server: HubServer, tiny: str, closed: str
) -> None:
    listing = hub.repository(REPO)
    server.broken = 502
    with pytest.raises(HubError, match=r"answers with 502.*to go on"):
        hub.fetch(listing, [FILE])


# Space

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_no_space(hub: Hub, server: HubServer, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = hub.repository(REPO).files[FILE].size
    asked: list[Path] = []

    def disk_usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(0, 0, size - 1)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(HubError, match=f"need {size:,} bytes in .* {size - 1:,} free") as caught:
        fetch(hub, FILE)
    assert "HF_HUB_CACHE" in str(caught.value)
    assert server.downloads == []
    assert asked == [hub.cache.parent]  # the cache itself is not there yet


def test_space_is_needed_for_what_is_missing_alone(
    hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, {FILE: LARGE, "config.json": b"{}"})
    partial(hub).parent.mkdir(parents=True)
    partial(hub).write_bytes(LARGE[:-1000])
    free = 1001
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    with pytest.raises(HubError, match="need 1,002 bytes"):
        fetch(hub, FILE, "config.json")
    fetch(hub, FILE)
    fetch(hub, FILE, "config.json")
