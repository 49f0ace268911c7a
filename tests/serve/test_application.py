"""The app in any ASGI server: made with a call, called with messages, closed at the end of its lifespan."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest
from serving import COMMAND, keys_file
from starlette.applications import Starlette
from starlette.routing import Mount

from tinylora_edge import OptionError, TinyLoraError, serve
from tinylora_edge.runtime import SampledAnswer
from tinylora_edge.serve import ApiKeys, process

SMALL: dict[str, Any] = {"n_ctx": 256, "contexts": 1, "n_threads": 1}
BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 3}


async def send_request(app: Any, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    coming = [{"type": "http.request", "body": data, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if coming:
            return coming.pop()
        await asyncio.sleep(60)  # the client stays
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "app": app}
    scope |= {"query_string": b"", "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(content)


async def lifespan(app: Any, *messages: str) -> None:
    coming = [{"type": message} for message in messages]

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        assert message["type"].endswith("complete"), message

    await app({"type": "lifespan"}, receive, send)


def test_an_app_answers_and_closes(tiny: Path, tmp_path: Path) -> None:
    app = serve.app(tiny, store=tmp_path / "users.db", **SMALL)

    async def used() -> None:
        assert (await send_request(app, "GET", "/health"))[0] == 200
        status, answer = await send_request(app, "POST", "/v1/completions", BODY)
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 3)
        await lifespan(app, "lifespan.startup", "lifespan.shutdown")
        draining = {"status": "draining", "running": 0, "waiting": 0}
        assert (await send_request(app, "GET", "/health")) == (503, draining)
        status, answer = await send_request(app, "POST", "/v1/completions", BODY)
        assert (status, answer["error"]["code"]) == (503, "unavailable")

    asyncio.run(used())


def test_what_takes_seconds_holds_nobody_up(tiny: Path, tmp_path: Path) -> None:
    app = serve.app(tiny, store=tmp_path / "users.db", **SMALL)
    service, release = app.state.service, threading.Event()

    async def used() -> list[Any]:
        slow = [asyncio.create_task(service.in_turn(release.wait, 60)) for _ in range(40)]
        assert (await send_request(app, "POST", "/v1/completions", BODY))[0] == 200
        assert (await send_request(app, "GET", "/v1/vectors/ann"))[0] == 404
        assert not any(task.done() for task in slow)
        await asyncio.to_thread(service.close)
        release.set()
        return await asyncio.gather(*slow, return_exceptions=True)

    first, *others = asyncio.run(used())
    assert first is True
    assert {(type(error), "going down" in str(error)) for error in others} == {(TinyLoraError, True)}


def test_one_user_makes_the_server_forget_nobody_else(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylora_edge.serve.feedback._REMEMBERED", 5)
    app = serve.app(tiny, store=tmp_path / "users.db", states=tmp_path / "states", **SMALL)
    answer = SampledAnswer((1,), (2,), None, 1.0)
    app.state.service.feedback.remember("a", "ann", answer)
    for number in range(9):
        app.state.service.feedback.remember(f"m{number}", "mallory", answer)
    assert list(app.state.service.feedback._answers) == ["a", "m5", "m6", "m7", "m8"]
    app.state.service.close()


def test_a_name_with_a_slash_below_a_path(tiny: Path) -> None:
    app = serve.app(tiny, name="org/tiny", **SMALL)
    below = Starlette(routes=[Mount("/llm", app=app)])
    status, found = asyncio.run(send_request(below, "GET", "/llm/v1/models/org/tiny"))
    assert (status, found["id"]) == (200, "org/tiny")
    app.state.service.close()


def test_a_key_stands_for_one(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalice-key alice\nalice-key alice\n")
    assert ApiKeys.read(path).find("Bearer alice-key")[1] == "alice"
    for other in ("", " bob"):
        path.write_text(f"alice-key alice\nalice-key{other}\n")
        with pytest.raises(TinyLoraError, match="line 2: a line has a key, or a key and the one user"):
            ApiKeys.read(path)


def test_keys_that_others_can_read_are_warned_of(tmp_path: Path) -> None:
    path = keys_file(tmp_path, "alice-key alice\n")
    for mode, warned in ((0o644, True), (0o600, False)):
        path.chmod(mode)
        command = [*COMMAND, str(tmp_path / "nothing"), "--api-keys", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert (f"{path} can be read by others on this machine: chmod 600" in ended.stderr) == warned


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (OptionError, {"n_contexts": 3}),
        (OptionError, {"name": "team@v1"}),
        (OptionError, {"states": "states"}),
        (OptionError, {"store": "users.db", "state": "state"}),
        (TinyLoraError, {"api_keys": {"short": None}}),
        (FileNotFoundError, {"store": Path("none", "users.db")}),
    ],
)
def test_an_app_that_cannot_be_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], options: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        serve.app(tiny, **options)


WALK = """
import asyncio, gc, sys, threading
from test_application import send_request, serve

entered = set()
enter = lambda frame, event, _: entered.add(frame.f_code.co_filename)
gc.disable()
threading.setprofile(enter)  # of the app's threads, which begin later
app = serve.app(sys.argv[1], name="tiny", n_ctx=256)
body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}

async def send():
    for _ in range(2):
        entered.clear()
        sys.setprofile(enter)
        status, _ = await send_request(app, "POST", "/v1/chat/completions", body)
        sys.setprofile(None)
        assert status == 200, status

asyncio.run(send())
threading.setprofile(None)
print(*sorted(entered), sep="\\n")
app.state.service.close()
"""


def test_a_request_on_onnx_enters_few_files() -> None:
    """Of ours, in all threads of a process of its own: a warm chat completion of the base."""
    command = [sys.executable, "-c", WALK, str(onnx_bundles.tiny())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = str(Path(serve.__file__).parent.parent)
    ours = [path for path in done.stdout.split() if path.startswith(package)]
    assert 10 < len(ours) <= 13, "\n".join(ours)


def test_nothing_that_is_sent_waits_for_an_acknowledgement() -> None:
    """A body would else arrive 40 ms after its headers, and a token as long after the one before it."""
    with (
        process._listening("127.0.0.1", 0) as bound,
        socket.create_connection(bound.getsockname()),
        bound.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
