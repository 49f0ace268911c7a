"""Clicks over HTTP: a user's vector moves with each, and nobody else's."""

from __future__ import annotations

import concurrent.futures
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest
from serving import KEY, Serving, framed, keys_file, mac_file, serving

from tinylora_edge import Ed25519Signer, MicroVector, SignatureError, load_bundle, serve
from tinylora_edge.wire.text import encode as as_text

GOOD: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 1, "seed": 3}
APP, OTHER, ALICE = ({"Authorization": f"Bearer {key}"} for key in ("app-key-1", "app-key-2", "alice-key"))


def answered(server: Serving, **change: Any) -> str:
    status, body = server.ask("POST", "/v1/completions", GOOD | change, **APP)
    assert status == 200, body
    return body["id"]


def rate(server: Serving, headers: dict[str, str] = APP, **body: Any) -> tuple[int, Any]:
    status, answer = server.ask("POST", "/v1/feedback", body, **headers)
    return status, answer["sequence"] if status == 200 else answer["error"]["code"]


def clicks(folder: Path, user: str) -> list[Any]:
    with sqlite3.connect(folder / "users.db") as connection:
        return connection.execute("SELECT * FROM tinylora_clicks WHERE name = ?", (user,)).fetchall()


def vector(server: Serving, user: str) -> str | None:
    status, body = server.ask("GET", f"/v1/vectors/{user}", **APP)
    return body["vector"] if status == 200 else None


@pytest.mark.parametrize("engine", ["llama", "onnx"])
def test_a_users_vector_moves_with_their_clicks(tiny: Path, tmp_path: Path, engine: str) -> None:
    """On both engines, and in vectors that the server signs."""
    keys_file(tmp_path, "app-key-1\napp-key-2\nalice-key alice\n")
    options = ["--store", tmp_path / "users.db", "--feedback", "--n-ctx", "256"]
    private, public = Ed25519Signer(bytes(range(32))).pem()
    options += ["--sign", keys_file(tmp_path, private, "key"), "--name", "tiny"]
    options += ["--key", keys_file(tmp_path, public, "key.pub")]
    tiny = tiny if engine == "llama" else onnx_bundles.tiny()
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:
        first = answered(server, user="alice")
        assert rate(server, id=first, reward=1) == (200, 1)
        assert rate(server, id=first, reward=1) == (404, "answer_not_found")
        moved = vector(server, "alice")
        assert rate(server, id=answered(server, model="tiny@alice"), reward=-1) == (200, 2)
        assert vector(server, "alice") != moved
        pair = answered(server, model="tiny@alice", n=2)
        assert rate(server, better=f"{pair}:1", worse=pair) == (200, 3)
        assert vector(server, "bob") is None
        bobs, nobodys = answered(server, user="bob"), answered(server)
        hers = answered(server, user="alice")
        for other in (ALICE, OTHER):  # also where it is alice's vector: it answered another key
            assert rate(server, other, id=hers, reward=1) == (404, "answer_not_found")
            assert rate(server, other, id=bobs, reward=1) == (404, "answer_not_found")
        status, asked = server.ask("POST", "/v1/completions", GOOD, **ALICE)
        assert status == 200
        assert rate(server, id=asked["id"], reward=1) == (404, "answer_not_found")
        assert rate(server, id=nobodys, reward=1) == (404, "answer_not_found")
        assert rate(server, better=bobs, worse=bobs) == (400, "invalid_value")
        for body in ({}, {"id": bobs}, {"id": bobs, "reward": 2}, {"id": 7, "reward": 1}, {"better": bobs}):
            assert rate(server, **body) == (400, "invalid_value"), body
        assert rate(server, {}, id=bobs, reward=1) == (401, "invalid_api_key")
        assert rate(server, id=bobs, reward=1) == (200, 1)
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:  # a restart remembers
        assert rate(server, id=answered(server, model="tiny@alice"), reward=1) == (200, 4)


def test_clicks_come_after_whatever_was_accepted_and_an_answer_teaches_once(tiny, tmp_path):
    options = ("--store", tmp_path / "users.db", "--feedback", "--n-ctx", "256")
    keys_file(tmp_path, "app-key-1\n")
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:
        assert rate(server, id=answered(server, user="alice"), reward=1) == (200, 1)
        assert server.ask("DELETE", "/v1/vectors/alice", **APP)[0] == 200
        assert not clicks(tmp_path, "alice")
        last = answered(server, user="alice")
        assert rate(server, id=last, reward=1) == (200, 2)
        basis = load_bundle(tiny).basis(numbers=13)
        frame = MicroVector(MicroVector.random(basis, 0.1).values, sequence=7).to_bytes(basis, user="alice")
        brought = answered(server, user="alice", vector=as_text(frame))
        assert rate(server, id=brought, reward=1) == (200, 8)
        last = MicroVector(MicroVector.random(basis, 0.1).values, sequence=65535).to_bytes(basis, user="eve")
        brought = answered(server, user="eve", vector=as_text(last))
        assert rate(server, id=brought, reward=1) == (400, "invalid_value")  # no sequence is left
        first = answered(server, user="alice")
        again = {"vector": vector(server, "alice")}  # which clicks made: they go on
        assert server.ask("PUT", "/v1/vectors/alice", again, **APP)[0] == 200
        assert clicks(tmp_path, "alice")
        with sqlite3.connect(tmp_path / "users.db") as connection:
            connection.execute("UPDATE tinylora_clicks SET state = ? WHERE name = 'alice'", (b"damaged",))
        assert rate(server, id=first, reward=1) == (500, "internal_error")
        assert "is not a usable state" in server.log.read_text("utf-8")  # and not in the answer
        assert server.ask("DELETE", "/v1/vectors/alice", **APP)[0] == 200
        assert rate(server, id=first, reward=1) == (404, "answer_not_found")  # it was forgotten with the user

        for user in ("carl", "Carl"):
            assert rate(server, id=answered(server, user=user), reward=1) == (200, 1)
        for sequence, own in enumerate((basis, load_bundle(tiny).basis(rank=2))):
            frame = MicroVector(MicroVector.random(own, 0.1).values, sequence=2 + sequence)
            put = {"vector": as_text(frame.to_bytes(own, user="carl"))}
            assert server.ask("PUT", "/v1/vectors/carl", put, **APP)[0] == 200
            kept = answered(server, user="carl")  # the base's: what clicks find of it takes nothing's place
            status, answer = server.ask("POST", "/v1/feedback", {"id": kept, "reward": 1}, **APP)
            assert (status, answer["error"]["code"]) == (400, "invalid_value")
            assert f"{own.size} numbers of basis {own.id}, is not of clicks" in answer["error"]["message"]
            assert server.ask("DELETE", "/v1/vectors/carl", **APP)[0] == 200
        assert rate(server, id=answered(server, user="carl"), reward=1) == (200, 4)

        name = answered(server, user="bob")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: rate(server, id=name, reward=1), range(4)))
        assert sorted(found) == [(200, 1), *[(404, "answer_not_found")] * 3]
        alike = answered(server, user="bob", n=2, temperature=0)
        assert rate(server, better=alike, worse=f"{alike}:1") == (400, "nothing_learned")
        assert rate(server, id=alike, reward=1) == (200, 2)  # nothing came of it, so it can be rated again


def test_a_server_that_goes_down_learns_a_click_whole_or_not_at_all(tiny: Path, tmp_path: Path) -> None:
    """One is being learned and four wait: each is stored, or refused and can be sent again."""
    options = ("--store", tmp_path / "users.db", "--feedback", "--n-ctx", "2048", "--grace", "1")
    keys_file(tmp_path, "app-key-1\n")
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:
        names = [answered(server, user="alice", max_tokens=1500, seed=seed) for seed in range(5)]
        with ThreadPoolExecutor(5) as pool:
            sent = [pool.submit(rate, server, id=name, reward=1) for name in names]
            concurrent.futures.wait(sent, return_when=concurrent.futures.FIRST_COMPLETED, timeout=1)
            server.process.send_signal(signal.SIGTERM)
            found = [each.result() for each in sent]
        assert server.process.wait(60) == 0
    learned = [name for name, (status, _) in zip(names, found, strict=True) if status == 200]
    assert {answer for _, answer in found} <= {*range(1, 6), "unavailable"}
    with serving(tmp_path, tiny, *options[:-2], "--api-keys", tmp_path / "keys") as server:
        for name in learned:
            assert rate(server, id=name, reward=1) == (404, "answer_not_found")
        if left := next((name for name in names if name not in learned), None):
            assert rate(server, id=left, reward=1) == (200, len(learned) + 1)


def test_a_server_without_a_store_and_a_store_that_is_damaged(tiny: Path, tmp_path: Path) -> None:
    basis, path = load_bundle(tiny).basis(numbers=13), tmp_path / "users.db"
    with serving(tmp_path, tiny, "--n-ctx", "256") as server:
        status, body = server.ask("POST", "/v1/feedback", {"id": "x", "reward": 1})
        assert (status, body["error"]["code"]) == (404, "no_feedback")
        for host in ("evil.example", "evil.example:80", "["):  # a name that leads here
            status, body = server.ask("POST", "/v1/completions", GOOD, Host=host)
            assert (status, body["error"]["code"]) == (403, "wrong_host"), host
        assert server.ask("POST", "/v1/completions", GOOD, Host="localhost:1")[0] == 200
    with serving(tmp_path, tiny, "--store", path, "--key", mac_file(tmp_path), "--n-ctx", "256") as server:
        frame = as_text(framed(basis, "alice"))
        assert server.ask("PUT", "/v1/vectors/alice", {"vector": frame})[0] == 200
        for file in tmp_path.glob("users.db*"):
            with file.open("r+b") as opened:
                opened.write(b"\0" * file.stat().st_size)
        newer = as_text(framed(basis, "alice", sequence=2))
        status, body = server.ask("PUT", "/v1/vectors/alice", {"vector": newer})
        assert (status, body["error"]["code"]) == (503, "store_unavailable")
        assert "users.db" not in body["error"]["message"]
        assert f"{path} cannot be used" in server.log.read_text("utf-8")
        assert server.ask("POST", "/v1/completions", GOOD)[0] == 200


def test_vectors_that_nobody_could_use_are_not_learned(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SignatureError):
        serve.app(tiny, store=tmp_path / "users.db", feedback=True, keys=[KEY])
