"""The page without a browser: its files, who may ask, and what it asks beside OpenAI's routes."""

from __future__ import annotations

import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from serving import KEY, Serving, playing

from tinylora_edge import Basis, MicroVector, Policy, VectorError
from tinylora_edge.serve.editor import USER, VectorEditor
from tinylora_edge.serve.store import Store
from tinylora_edge.wire import text
from tinylora_edge.wire.frame import utc_today

VALUES = [0.5, -0.25, 0.0, 0.125, 1.0, *[0.0] * 8]  # which bf16 holds exactly


@pytest.fixture(scope="module")
def page(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, dict[str, str]]]:
    with playing(tmp_path_factory.mktemp("page"), tiny) as (server, address):
        yield server, key(address)


def key(address: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {address.partition('#token=')[2]}"}


def refused(answer: tuple[int, Any]) -> tuple[int, str]:
    status, body = answer
    return status, body["error"]["code"]


def test_files_need_no_token_and_may_do_little(page: tuple[Serving, dict[str, str]]) -> None:
    server, _ = page
    connection = server.connect()
    kinds = {"/": "text/html", "/page/page.css": "text/css", "/page/main.js": "text/javascript"}
    for path, kind in kinds.items():
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.read()
        assert (response.status, response.getheader("Content-Type")) == (200, f"{kind}; charset=utf-8")
        rules = response.getheader("Content-Security-Policy", "")
        assert rules.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in rules
        assert response.getheader("X-Content-Type-Options") == "nosniff"
    for path in ("/page/none.js", "/page/editor.py", "/page/..%2fkeys.py", "/page/__init__.py"):
        assert refused(server.ask("GET", path)) == (404, "not_found"), path


def test_nobody_without_the_token_is_answered(page: tuple[Serving, dict[str, str]]) -> None:
    server, token = page
    answer = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    bodies = {"/v1/page/vector": {"values": VALUES}, "/v1/completions": answer}
    assert refused(server.ask("GET", "/v1/page")) == (401, "invalid_api_key")
    for path, body in bodies.items():
        for headers in ({}, {"Authorization": "Bearer " + "x" * 32}):
            assert refused(server.ask("POST", path, body, **headers)) == (401, "invalid_api_key"), path
    assert refused(server.ask("GET", "/v1/vectors/alice", **token)) == (403, "wrong_user")
    assert server.ask("POST", "/v1/completions", answer, **token)[0] == 200


def test_values_become_a_frame_of_the_visitor(page: tuple[Serving, dict[str, str]], basis: Basis) -> None:
    server, token = page
    status, about = server.ask("GET", "/v1/page", **token)
    assert (status, about["model"], about["user"], about["feedback"]) == (200, "tiny", "me", True)
    assert about["vector"]["values"] == [0.0] * 13
    status, made = server.ask("POST", "/v1/page/vector", {"values": VALUES}, **token)
    assert (status, made["values"], made["norm"]) == (200, VALUES, float(np.linalg.norm(VALUES)))
    frame = text.decode(made["vector"])
    read = Policy().check(frame, basis, user="me")
    assert (read.values.tolist(), len(frame)) == (VALUES, made["bytes"])
    with pytest.raises(VectorError):
        Policy().check(frame, basis, user="alice")
    for values in (VALUES[1:], [*VALUES, 0.0]):
        answer = server.ask("POST", "/v1/page/vector", {"values": values}, **token)
        assert refused(answer) == (403, "vector_refused"), values
    odd = [[*VALUES[1:], None], [*VALUES[1:], True], [*VALUES[1:], 1e31], 3]
    for body in (*({"values": values} for values in odd), {}, [], "x"):
        answer = server.ask("POST", "/v1/page/vector", body, **token)
        assert refused(answer) == (400, "invalid_value"), body


def test_a_file_becomes_values(page: tuple[Serving, dict[str, str]], basis: Basis) -> None:
    server, token = page
    vector = MicroVector(np.array(VALUES, np.float32))
    sent = token | {"Content_Type": "application/octet-stream"}
    own, nameless = (vector.to_bytes(basis, user=stream) for stream in ("me", ""))
    for data in (own, nameless, text.encode(own, scheme=True).encode()):
        status, opened = server.ask("POST", "/v1/page/vector", data, **sent)
        assert (status, opened["values"]) == (200, VALUES), data
        assert Policy().check(text.decode(opened["vector"]), basis, user="me") is not None
    for data, code in (
        (vector.to_bytes(basis, user="alice"), "vector_damaged"),
        (own[:-1] + bytes([own[-1] ^ 1]), "vector_damaged"),
        (own[:1] + bytes(4) + own[5:], "vector_of_another_basis"),
        (vector.to_bytes(basis, KEY), "vector_forged"),
        (b"\x89PNG", "vector_damaged"),
        (b"", "vector_damaged"),
    ):
        status = 422 if code == "vector_damaged" else 403
        assert refused(server.ask("POST", "/v1/page/vector", data, **sent)) == (status, code), data


def test_what_clicks_made_comes_after_what_the_page_began_with(bases, basis, tmp_path):
    first, learned = MicroVector.random(basis, 1, seed=1), MicroVector.random(basis, 1, seed=2)
    store = Store(tmp_path / "users.db", bases)
    policy = Policy(state=store.sequences)
    for sequence in (1, 2):  # the first is of an earlier session, which FILE comes before
        editor = VectorEditor(bases, policy, store, first.to_bytes(basis))
        np.testing.assert_allclose(editor.present()["values"], first.values, rtol=0.01)
        frame = MicroVector(learned.values, sequence=sequence).to_bytes(basis, user=USER)
        store.put(USER, frame, policy)
        present = editor.present()
        np.testing.assert_allclose(present["values"], learned.values, rtol=0.01)
        assert present == editor.learned()
        assert present["sequence"] == sequence
    assert editor.opened(first.to_bytes(basis, user=USER))["sequence"] == 2  # 1, by hand
    today = utc_today()
    bounded = text.decode(editor.opened(first.to_bytes(basis, until=today))["vector"])
    assert policy.check(bounded, basis, user=USER).until == today, "a file's last day is not lost"
    store.delete(USER)
    made = text.decode(editor.made([0.5] * basis.size)["vector"])
    assert policy.check(made, basis, user=USER).sequence == 2  # which the policy remembers
    with pytest.raises(VectorError):
        VectorEditor(bases, Policy(), store, b"no frame")
    store.close()


# `play`: it opens a page in the browser, keeps what clicks taught in a folder, and leaves no trace


CHAT: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 1, "seed": 3}


def learned(server: Serving, token: dict[str, str]) -> tuple[list[float], int]:
    status, about = server.ask("GET", "/v1/page", **token)
    assert status == 200, about
    assert about["vector"] == about["learned"]
    return about["learned"]["values"], about["learned"]["sequence"]


def test_a_browser_is_opened_and_what_clicks_taught_is_kept(tiny: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    script = tmp_path / "browser"
    script.write_text(f"#!{sys.executable}\nimport sys\nopen({str(opened)!r}, 'a').write(sys.argv[1])\n")
    script.chmod(0o755)
    options = (tiny, "--keep", tmp_path / "kept")
    with playing(tmp_path, *options, browser=f"{script} %s") as (server, address):
        support.wait_until(lambda: opened.exists() and bool(opened.read_text()))
        assert opened.read_text() == address
        token = key(address)
        assert learned(server, token) == ([0.0] * 13, 1)
        status, answer = server.ask("POST", "/v1/completions", CHAT, **token)
        assert status == 200, answer
        click = {"id": answer["id"], "reward": 1}
        assert server.ask("POST", "/v1/feedback", click, **token)[1]["user"] == "me"
        values, sequence = learned(server, token)
        assert (any(values), sequence) == (True, 1)
        assert server.ask("GET", "/v1/page")[0] == 401
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 128 + signal.SIGINT
        assert server.text() == "Ctrl-C ends it\n"
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    with playing(tmp_path, *options) as (server, address):
        assert key(address) != token
        assert learned(server, key(address)) == (values, sequence)
        assert server.ask("GET", "/v1/page", **token)[0] == 401  # of another start


def test_nothing_stays_without_keep(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    with playing(tmp_path, tiny) as (server, address):
        assert learned(server, key(address))[1] == 1
        assert len(list((tmp_path / "temporary").iterdir())) >= 1
    assert list((tmp_path / "temporary").iterdir()) == []
