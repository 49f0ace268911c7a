"""Clicks over HTTP: a user's vector moves with each, and nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import MAC, Serving, serving

from tinylora_edge import Bundle, MicroVector, SignatureError, TinyLoraError, serve
from tinylora_edge.wire import text

GOOD: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 1, "seed": 3}
APP, ALICE = {"Authorization": "Bearer app-key-1"}, {"Authorization": "Bearer alice-key"}


def answered(server: Serving, **change: Any) -> str:
    status, body = server.ask("POST", "/v1/completions", GOOD | change, **APP)
    assert status == 200, body
    return body["id"]


def told(server: Serving, headers: dict[str, str] = APP, **body: Any) -> tuple[int, Any]:
    status, answer = server.ask("POST", "/v1/feedback", body, **headers)
    return status, answer["sequence"] if status == 200 else answer["error"]["code"]


def vector(server: Serving, user: str) -> str | None:
    status, body = server.ask("GET", f"/v1/vectors/{user}", **APP)
    return body["vector"] if status == 200 else None


def test_a_users_vector_moves_with_his_clicks(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("app-key-1\nalice-key alice\n")
    options = ("--store", tmp_path / "users.db", "--feedback", tmp_path / "states", "--n-ctx", "256")
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:
        first = answered(server, user="alice")
        assert told(server, id=first, reward=1) == (200, 1)
        assert told(server, id=first, reward=1) == (404, "answer_not_found")
        moved = vector(server, "alice")
        assert told(server, id=answered(server, model="tiny@alice"), reward=-1) == (200, 2)
        assert vector(server, "alice") != moved
        pair = answered(server, model="tiny@alice", n=2)
        assert told(server, better=f"{pair}:1", worse=pair) == (200, 3)
        assert vector(server, "bob") is None
        bobs, nobodys = answered(server, user="bob"), answered(server)
        assert told(server, ALICE, id=bobs, reward=1) == (404, "answer_not_found")
        assert told(server, id=nobodys, reward=1) == (400, "invalid_value")
        assert told(server, better=bobs, worse=bobs) == (400, "invalid_value")
        for body in (
            {},
            {"id": bobs},
            {"id": bobs, "reward": 2},
            {"id": 7, "reward": 1},
            {"better": bobs, "worse": 1},
        ):
            assert told(server, **body) == (400, "invalid_value"), body
        assert told(server, {"Authorization": "Bearer wrong-key"}, id=bobs, reward=1) == (
            401,
            "invalid_api_key",
        )
        assert told(server, id=bobs, reward=1) == (200, 1)
        states = {path.name for path in (tmp_path / "states").rglob("*.state")}
        assert states == {"alice.state", "bob.state"}
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:  # a restart remembers
        assert told(server, id=answered(server, model="tiny@alice"), reward=1) == (200, 4)


def test_clicks_come_after_whatever_was_accepted(tiny: Path, tmp_path: Path) -> None:
    options = ("--store", tmp_path / "users.db", "--feedback", tmp_path / "states", "--n-ctx", "256")
    (tmp_path / "keys").write_text("app-key-1\n")
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:
        assert told(server, id=answered(server, user="alice"), reward=1) == (200, 1)
        (state,) = (tmp_path / "states").rglob("alice.state")
        assert server.ask("DELETE", "/v1/vectors/alice", **APP)[0] == 200
        assert not state.exists()
        last = answered(server, user="alice")
        assert told(server, id=last, reward=1) == (200, 2)
        basis = Bundle.find(tiny).basis
        given = MicroVector(MicroVector.random(basis, 0.1).values, sequence=7).to_bytes(basis, stream="alice")
        brought = answered(server, user="alice", vector=text.encode(given))
        assert told(server, id=brought, reward=1) == (200, 8)
        first = answered(server, user="alice")
        assert server.ask("DELETE", "/v1/vectors/alice", **APP)[0] == 200
        assert told(server, id=first, reward=1) == (404, "answer_not_found")  # it was forgotten with him


def test_an_answer_teaches_once(tiny: Path, tmp_path: Path) -> None:
    options = ("--store", tmp_path / "users.db", "--feedback", tmp_path / "states", "--n-ctx", "256")
    (tmp_path / "keys").write_text("app-key-1\n")
    with serving(tmp_path, tiny, *options, "--api-keys", tmp_path / "keys") as server:
        name = answered(server, user="bob")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: told(server, id=name, reward=1), range(4)))
        assert sorted(found) == [(200, 1), *[(404, "answer_not_found")] * 3]
        alike = answered(server, user="bob", n=2, temperature=0)
        assert told(server, better=alike, worse=f"{alike}:1") == (400, "nothing_learned")
        assert told(server, id=alike, reward=1) == (200, 2)  # nothing came of it, so it can be told again


def test_a_server_that_learns_from_no_clicks(tiny: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny, "--n-ctx", "256") as server:
        status, body = server.ask("POST", "/v1/feedback", {"id": "x", "reward": 1})
        assert (status, body["error"]["code"]) == (404, "no_feedback")


def test_vectors_that_nobody_could_use_are_not_learned(tiny: Path, tmp_path: Path) -> None:
    from tinylora_edge import Hmac

    with pytest.raises(TinyLoraError, match="name a store too"):
        serve.app(tiny, states=tmp_path / "states")
    with pytest.raises(SignatureError):
        serve.app(tiny, store=tmp_path / "users.db", states=tmp_path / "states", keys=[Hmac.from_hex(MAC)])
    assert not (tmp_path / "states").exists()
