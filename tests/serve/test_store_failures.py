"""A store that fails under a server: a clear error for who needs it, and answers for everybody else."""

from __future__ import annotations

from pathlib import Path

from serving import as_text, framed, mac_file, serving

from tinylora_edge import load_basis

PLAIN = "/v1/completions"
GOOD = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "temperature": 0}


def test_a_store_that_is_damaged_while_the_server_runs(tiny: Path, tmp_path: Path) -> None:
    basis, path = load_basis(tiny / "basis.gguf"), tmp_path / "users.db"
    with serving(tmp_path, tiny, "--store", path, "--key", mac_file(tmp_path), "--n-ctx", "256") as server:
        assert server.ask("PUT", "/v1/vectors/alice", {"vector": as_text(framed(basis, 1))})[0] == 200
        assert server.ask("POST", PLAIN, GOOD | {"model": "tiny@alice"})[0] == 200
        for host in ("evil.example", "evil.example:80", "["):  # a name that leads here
            status, body = server.ask("POST", PLAIN, GOOD, Host=host)
            assert (status, body["error"]["code"]) == (403, "wrong_host"), host
        assert server.ask("POST", PLAIN, GOOD, Host="localhost:1")[0] == 200
        for file in tmp_path.glob("users.db*"):
            with file.open("r+b") as opened:
                opened.write(b"\0" * file.stat().st_size)
        newer = {"vector": as_text(framed(basis, 1, sequence=2))}
        status, body = server.ask("PUT", "/v1/vectors/alice", newer)
        assert (status, body["error"]["code"]) == (503, "store_unavailable")
        assert "users.db cannot be used" in body["error"]["message"]
        assert server.ask("POST", PLAIN, GOOD)[0] == 200


def test_a_published_layout_as_the_store(tiny: Path, tmp_path: Path) -> None:
    basis, folder = load_basis(tiny / "basis.gguf"), tmp_path / "published"
    folder.mkdir()
    options = (
        "--store",
        folder,
        "--state",
        tmp_path / "state",
        "--key",
        mac_file(tmp_path),
        "--n-ctx",
        "256",
    )
    with serving(tmp_path, tiny, *options) as server:
        put = server.ask("PUT", "/v1/vectors/alice", {"vector": as_text(framed(basis, 1, sequence=2))})
        assert put[0] == 200
        assert (folder / basis.id / "alice" / "00002.bin").is_file()
        assert server.ask("POST", PLAIN, GOOD | {"model": "tiny@alice"})[0] == 200
        assert server.ask("DELETE", "/v1/vectors/alice")[1]["error"]["code"] == "store_unavailable"
    with serving(tmp_path, tiny, *options) as server:  # a restart remembers
        older = server.ask("PUT", "/v1/vectors/alice", {"vector": as_text(framed(basis, 1))})
        assert (older[0], older[1]["error"]["code"]) == (403, "vector_stale")
