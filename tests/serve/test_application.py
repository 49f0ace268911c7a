"""The app in any ASGI server: made with a call, called with messages, closed at the end of its lifespan."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest
from pydantic import ValidationError
from serving import KEY, Serving, serving
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from support import wait_until

from tinylora_edge import Basis, MicroVector, Policy, runtime, serve
from tinylora_edge.errors import OptionError, RollbackError, TinyLoraError, VectorError
from tinylora_edge.runtime import Clicks, SampledAnswer
from tinylora_edge.runtime.answers import Reply
from tinylora_edge.runtime.turns import Who
from tinylora_edge.serve import ApiKeys, process
from tinylora_edge.serve.access import RefusedError
from tinylora_edge.serve.completions import Body
from tinylora_edge.serve.service import Service
from tinylora_edge.wire import text
from tinylora_edge.wire.frame import utc_today

SMALL: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}
BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 3}
LONG = BODY | {"max_tokens": 4000, "temperature": 1, "stream": True}


def test_an_app_answers_and_closes(tiny: Path, tmp_path: Path) -> None:
    (link := tmp_path / "linked").symlink_to(tiny)  # whose name is the model's
    client = TestClient(serve.app(link, store=tmp_path / "users.db", **SMALL))
    body = BODY | {"model": "linked"}
    with client:
        assert client.get("/health").status_code == 200
        answer = client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["usage"]["prompt_tokens"]) == (200, 3)
    health, answer = client.get("/health"), client.post("/v1/completions", json=body)
    state = {"status": "draining", "running": 0, "waiting": 0, "exact": True}  # ONNX Runtime always is
    assert (health.status_code, health.json()) == (503, state)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


def test_what_takes_seconds_holds_nobody_up(tiny: Path, tmp_path: Path) -> None:
    app = serve.app(tiny, store=tmp_path / "users.db", **SMALL)
    begun, release = threading.Event(), threading.Event()
    service, mallory = app.state.service, Who("m", "m")

    def learn() -> bool:
        begun.set()
        return release.wait(60)

    with TestClient(app) as client:
        assert client.portal is not None
        slow = [client.portal.start_task_soon(service.learn, mallory, learn) for _ in range(40)]
        assert client.post("/v1/completions", json=BODY).status_code == 200
        assert client.get("/v1/vectors/ann").status_code == 404
        assert begun.wait(60)
        assert not any(task.done() for task in slow)
        service.close()
        release.set()
        assert slow[0].result() is True
        for task in slow[1:]:
            with pytest.raises(TinyLoraError, match="going down"):
                task.result()


def test_clicks_and_the_store_take_turns_by_account(tiny: Path, tmp_path: Path) -> None:
    """Whoever sends many, under many users' names, is no nearer to the next turn than who sends one."""
    app, release = serve.app(tiny, store=tmp_path / "users.db", **SMALL), threading.Event()
    done = list[str]()
    service, ann = app.state.service, Who("ann", "ann")
    with TestClient(app) as client:
        assert client.portal is not None

        def work(name: str, store: Any = None) -> None:
            assert release.wait(60)
            done.append(name)

        def begin(who: Who) -> list[Any]:
            stored = client.portal.start_task_soon(service.with_store, who, partial(work, f"{who}, stored"))
            return [stored, client.portal.start_task_soon(service.learn, who, work, who.account)]

        many = [task for number in range(20) for task in begin(Who("mallory", f"user {number}"))]
        stored = client.portal.start_task_soon(service.with_store, ann, lambda store: "now")
        clicked = begin(ann)
        client.portal.call(asyncio.sleep, 0)  # all of them wait now
        assert stored.result(60) == "now", "while two calls of the other account hold two threads"
        release.set()
        for task in many + clicked:
            task.result(60)
        assert [name for name in done if name in ("ann", "mallory")].index("ann") == 1


def test_an_account_makes_the_store_forget_nobody_elses_answers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tinylora_edge.serve.store._WAITING", 3)
    app = serve.app(tiny, store=tmp_path / "users.db", feedback=True, **SMALL)
    service, answer = app.state.service, SampledAnswer((1,), (2,), None, 1.0)
    feedback = service.feedback
    feedback.remember("a", Who("app", "ann"), answer)
    feedback.remember("z", Who("app", "zoe"), answer)
    for number in range(5):
        feedback.remember(f"m{number}", Who("mallory", "ann"), answer)
    found = service.store.answers(["a", "z", *(f"m{number}" for number in range(5))])
    assert [*found] == ["a", "z", "m2", "m3", "m4"]
    monkeypatch.setattr("tinylora_edge.serve.store._WAITING_S", -1)  # a day later
    feedback.remember("b", Who("app", "bob"), answer)
    assert not service.store.answers([*found, "b"])
    service.close()


@pytest.mark.parametrize("gone", [False, True], ids=["put", "deleted"])
def test_nothing_waits_for_a_click_and_what_comes_meanwhile_wins(tiny, basis, tmp_path, monkeypatch, gone):
    at, release, real = threading.Event(), threading.Event(), Clicks.tell

    def tell(*args: Any, **options: Any) -> MicroVector:
        at.set()
        assert release.wait(60)
        return real(*args, **options)

    app = serve.app(tiny, store=tmp_path / "users.db", feedback=True, **SMALL)
    with TestClient(app) as client:

        def put(user: str, **change: Any) -> Any:
            frame = replace(MicroVector.random(basis, 1.0), **change).to_bytes(basis, user=user)
            return client.put(f"/v1/vectors/{user}", json={"vector": text.encode(frame)}), text.encode(frame)

        ids = [client.post("/v1/completions", json=BODY | {"user": "ann"}).json()["id"] for _ in range(3)]
        for before in range(2):  # a user without a vector, and one whose clicks made one
            monkeypatch.setattr(Clicks, "tell", tell)
            at.clear()
            release.clear()
            click = {"id": ids[before], "reward": 1}
            learning = client.portal.start_task_soon(
                partial(asyncio.to_thread, client.post, "/v1/feedback", json=click)
            )
            assert at.wait(60)
            assert put("bob", sequence=1 + before)[0].status_code == 200
            if gone:
                assert client.delete("/v1/vectors/ann").status_code == (200 if before else 404)
            else:
                stored, frame = put("ann", sequence=2 + 8 * before)
                assert stored.status_code == 200
            release.set()
            reply = learning.result(60)
            assert (reply.status_code, reply.json()["error"]["code"]) == (409, "vector_changed")
            found = client.get("/v1/vectors/ann")
            assert found.status_code == 404 if gone else found.json()["vector"] == frame
            assert app.state.service.store.clicks("ann", basis.digest) == (0, None)
            assert client.post("/v1/feedback", json={"id": ids[2], "reward": 1}).status_code == 404
            monkeypatch.setattr(Clicks, "tell", real)
            client.delete("/v1/vectors/ann")
            ids = [client.post("/v1/completions", json=BODY | {"user": "ann"}).json()["id"] for _ in range(3)]
            assert client.post("/v1/feedback", json={"id": ids[0], "reward": 1}).status_code == 200


def test_servers_that_share_a_file_lose_no_click(tiny: Path, tmp_path: Path) -> None:
    files = {"store": tmp_path / "users.db", "feedback": True}
    services = [serve.app(tiny, **files, **SMALL).state.service for _ in range(2)]

    for name in "abcd":
        services[0].feedback.remember(name, Who("", "ann"), SampledAnswer((1,), (2,), None, 1.0))

    def click(service: Service, names: str) -> list[int]:
        return [service.feedback.learn([name], "", 1).sequence for name in names]

    with ThreadPoolExecutor() as pool:
        assert sorted(chain(*pool.map(click, services, ("ab", "cd")))) == [1, 2, 3, 4]
    revision, state = services[0].store.clicks("ann", services[0].feedback._basis.digest)
    assert (revision, json.loads(state)["state"]["clicks"]) == (4, 4)
    with pytest.raises(RefusedError, match="was rated already"):
        services[1].feedback.learn(["a"], "", 1)
    for service in services:
        service.close()


def test_a_shared_vector_lies_beneath_every_users_and_not_beneath_the_base(tiny, bases, tmp_path):
    def frame(basis: Basis, norm: float, user: str = "", **fields: Any) -> bytes:
        return replace(MicroVector.random(basis, norm, seed=1), **fields).to_bytes(basis, user=user)

    shared, own = frame(bases.basis(rank=8), 6.0, sequence=9), frame(bases.basis(numbers=13), 3.0, "alice")
    options: dict[str, Any] = {"prompt": "abc", "max_tokens": 12, "temperature": 0}

    async def answered(vector: Any, user: str) -> str:
        async with runtime.Pool(tiny, **SMALL) as pool:
            return (await pool.complete(**options, user=user, vector=vector)).text

    def expected(vector: Any, user: str = "alice") -> str:
        return asyncio.run(answered(vector, user))

    files = {"store": tmp_path / "users.db", "feedback": True}
    app = serve.app(tiny, under=shared, **files, **SMALL)
    service = app.state.service
    service.store.put("alice", own, service.pool.policy)
    with TestClient(app) as client:

        def answer(**body: Any) -> Any:
            return client.post("/v1/completions", json=options | body)

        both = answer(model="tiny@alice").json()
        found = both["choices"][0]["text"]
        assert found == expected([shared, own]) != expected(own)
        brought = answer(model="tiny", user="alice", vector=text.encode(own)).json()
        assert brought["choices"] == both["choices"]
        base, first = answer(model="tiny", user="bob").json(), answer(model="tiny@bob").json()
        assert base["choices"][0]["text"] == expected(None) != found
        assert first["choices"][0]["text"] == expected(service.under) != found

        def click(reply: Any) -> Any:
            return client.post("/v1/feedback", json={"id": reply["id"], "reward": 1}).json()

        assert "drawn with another vector beneath" in click(base)["error"]["message"]
        assert [click(reply)["sequence"] for reply in (first, answer(model="tiny@bob").json())] == [1, 2]
        assert len(now := service.store.get("bob").frame) == len(own)
        assert answer(model="tiny@bob").json()["choices"][0]["text"] == expected([shared, now], "bob")
    older = frame(bases.basis(rank=8), 6.0, sequence=8)
    for refused, error in ((older, RollbackError), (b"no vector", VectorError), ([], VectorError)):
        with pytest.raises(error):
            serve.app(tiny, under=refused, **files, **SMALL)


def test_a_shared_vector_is_asked_again_when_its_last_day_ends(tiny, bases, basis, tmp_path, monkeypatch):
    today = utc_today()
    monkeypatch.setattr("tinylora_edge.serve.application.Policy", partial(Policy, today=lambda: today))
    shared = MicroVector.random(basis, 1.0).to_bytes(basis, until=today)
    app = serve.app(tiny, under=shared, store=tmp_path / "users.db", feedback=True, **SMALL)
    app.state.service.store.put("ann", MicroVector.random(basis, 1.0).to_bytes(basis, user="ann"), Policy())
    with TestClient(app) as client:

        def ask(model: str) -> Any:
            return client.post("/v1/completions", json=BODY | {"model": model})

        replies = [ask(model) for model in ("tiny@ann", "tiny@bob", "tiny@bob")]
        assert [each.status_code for each in replies] == [200] * 3
        click = {"id": replies[1].json()["id"], "reward": 1}
        today += timedelta(days=1)
        refused = [ask("tiny@ann"), ask("tiny@bob"), client.post("/v1/feedback", json=click)]
        for each in refused:
            assert (each.status_code, each.json()["error"]["code"]) == (403, "vector_refused")
            assert "last day was" in each.json()["error"]["message"]
        assert ask("tiny").status_code == 200


def test_a_name_with_a_slash_below_a_path(tiny: Path) -> None:
    app = serve.app(tiny, name="org/tiny", **SMALL)
    below = TestClient(Starlette(routes=[Mount("/llm", app=app)]))
    assert below.get("/llm/v1/models").json()["data"][0]["id"] == "org/tiny"
    app.state.service.close()


def test_a_long_reply_is_made_beside_what_else_is_answered(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, release, real = threading.Event(), threading.Event(), Reply.whole

    def whole(*args: Any, **options: Any) -> Any:
        at.set()
        assert release.wait(60)
        return real(*args, **options)

    with TestClient(serve.app(tiny, **SMALL)) as client:
        assert client.portal is not None
        ask = partial(client.post, "/v1/completions")
        monkeypatch.setattr(Reply, "whole", whole)
        body = BODY | {"logprobs": 2, "temperature": 0}
        first = client.portal.start_task_soon(partial(asyncio.to_thread, ask, json=body))
        assert at.wait(60)
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as streamed:
            events = [
                line.removeprefix("data: ") for line in streamed.iter_lines() if line.startswith("data: {")
            ]
        release.set()
        described = first.result(60).json()["choices"][0]["logprobs"]
    pieces = [json.loads(event)["choices"][0]["logprobs"] for event in events]
    assert len(described["tokens"]) == 3
    for name, each in described.items():
        assert each == [*chain(*(piece[name] for piece in pieces if piece))]


def test_a_body_is_read_up_to_its_first_wrong_item() -> None:
    """To list the 500,000 that fit into a body would take seconds, in which nobody is answered."""
    wrong, user = [1] * 1000, {"role": "user", "content": "hi"}
    bodies = [{"messages": wrong}, {"stop": wrong}]
    bodies += [{"messages": [user | {name: wrong}]} for name in ("content", "tool_calls")]
    for body in bodies:
        with pytest.raises(ValidationError) as caught:
            Body.model_validate({"model": "tiny"} | body)
        assert caught.value.error_count() <= 2


def test_a_key_stands_for_one(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(TinyLoraError, match="one of 5 characters"):
        ApiKeys({"short": None})
    path.write_text("\ufeffalice-key alice\n# ours\nalice-key alice\n")
    assert ApiKeys.read(path).find("Bearer alice-key")[1] == "alice"
    for other in ("", " bob"):
        path.write_text(f"alice-key alice\nalice-key{other}\n")
        with pytest.raises(TinyLoraError, match="line 2: a line has a key, or a key and the one user"):
            ApiKeys.read(path)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (OptionError, {"n_contexts": 3}),
        (OptionError, {"name": "team@v1"}),
        (OptionError, {"name": "team\udcff"}),
        (OptionError, {"signer": KEY}),
        (OptionError, {"feedback": True}),
        (OptionError, {"store": "users.db", "page": True, "keys": [KEY]}),
        (FileNotFoundError, {"store": Path("none", "users.db")}),
    ],
)
def test_an_app_that_cannot_be_made(tiny, tmp_path, monkeypatch, error, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        serve.app(tiny, **options)


WALK = """
import gc, sys, threading
from starlette.testclient import TestClient
from tinylora_edge import serve

entered = set()
gc.disable()
threading.setprofile(lambda frame, event, _: entered.add(frame.f_code.co_filename))
with TestClient(serve.app(sys.argv[1], name="tiny", n_ctx=256)) as client:
    for _ in range(2):
        entered.clear()
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    print(*sorted(entered), sep="\\n")
"""


def test_a_request_on_onnx_enters_few_files() -> None:
    """Of ours, in all threads of a process of its own: a warm chat completion of the base."""
    command = [sys.executable, "-c", WALK, str(onnx_bundles.tiny())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = str(Path(serve.__file__).parent.parent)
    ours = [path for path in done.stdout.split() if path.startswith(package)]
    assert 10 < len(ours) <= 15, "\n".join(ours)


def test_nothing_that_is_sent_waits_for_an_acknowledgement() -> None:
    """A body would else arrive 40 ms after its headers, and a token as long after the one before it."""
    with (
        process._listening("127.0.0.1", 0, 1) as bound,
        socket.create_connection(bound.getsockname()),
        bound.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def streamed(server: Serving, begun: threading.Event, ends: list[str]) -> None:
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps(LONG), {"Content-Type": "application/json"})
    response = connection.getresponse()
    last = ""
    while line := response.readline():
        if line.startswith(b"data: "):
            last = line.decode().removeprefix("data: ").strip()
            begun.set()
    ends.append(last)


def test_a_server_leaves_in_steps_and_cuts_no_answer(tiny: Path, tmp_path: Path) -> None:
    """Behind a load balancer: it sees 503 first, while what it still sends is answered."""
    with serving(tmp_path, tiny, "--n-ctx", "1024", "--drain", "4", "--name", "tiny") as server:
        begun, ends = threading.Event(), []
        stream = threading.Thread(target=streamed, args=(server, begun, ends))
        assert server.ask("GET", "/health")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.ask("GET", "/health")[0] == 503)
        assert server.ask("GET", "/health")[1]["status"] == "draining"
        stream.start()
        assert begun.wait(60), "a request that came while /health says 503 is taken"
        stream.join(60)
        assert ends == ["[DONE]"]
        assert server.process.wait(60) == 0
        events = [line["event"] for line in server.events()]
    assert (events[0], [each for each in events if each in ("drain", "stop")]) == ("start", ["drain", "stop"])


def test_a_second_signal_is_now(tiny: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny, "--drain", "600", "--grace", "600") as server:
        assert server.ask("GET", "/health")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.ask("GET", "/health")[0] == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_request_keeps_its_id(tiny: Path, tmp_path: Path) -> None:
    app = serve.app(tiny, **SMALL)
    with TestClient(app) as client:
        assert client.get("/v1/models", headers={"X-Request-Id": "a-1:b"}).headers["x-request-id"] == "a-1:b"
        found = [client.get("/none", headers={"X-Request-Id": each}) for each in ("", "a b", "x" * 200)]
        made = {each.headers["x-request-id"] for each in found}
        assert [each.status_code for each in found] == [404] * 3
        assert len(made) == 3
        assert all(len(each) == 32 for each in made)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_say_why_they_end(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, tiny, "--n-ctx", "4096", "--grace", "1") as server:
        begun, ends = threading.Event(), []
        threads = [threading.Thread(target=streamed, args=(server, begun, ends)) for _ in range(12)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        server.process.send_signal(number)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) == (0 if number == signal.SIGTERM else 128 + number)
        log = server.lines()
    cut = [json.loads(end)["error"] for end in ends if end != "[DONE]"]
    assert len(ends) == 12
    assert {error["code"] for error in cut} <= {"unavailable"}
    assert [line for line in log if line["level"] != "info"] == []
