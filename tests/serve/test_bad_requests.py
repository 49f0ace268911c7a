"""Requests that are none: each gets a clear error in OpenAI's shape, and the server goes on."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import support
from serving import Serving, framed, head, keys_file, mac_file, serving

from tinylora_edge import Basis, BusyError
from tinylora_edge.serve.completions import _merged
from tinylora_edge.wire.text import encode as as_text

CHAT, PLAIN, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/vectors"
GOOD: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "temperature": 0}
APP, ALICE = {"Authorization": "Bearer app-key-1"}, {"Authorization": "Bearer alice-key"}


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    keys_file(folder, "# keys\napp-key-1\nalice-key alice\n")
    options = ("--store", folder / "users.db", "--key", mac_file(folder), "--api-keys", folder / "keys")
    limits = ("--n-ctx", "256", "--max-tokens", "100", "--max-body", "20000", "--max-requests", "64")
    with serving(folder, tiny, *options, *limits) as running:
        yield running


@pytest.fixture(autouse=True)
def goes_on(server: Serving) -> Iterator[None]:
    yield
    status, body = server.ask("POST", PLAIN, GOOD, **APP)
    assert status == 200
    assert server.process.poll() is None
    assert body["usage"]["prompt_tokens"] == 3


def refused(answer: tuple[int, Any], status: int, code: str, param: str | None = None) -> str:
    found, body = answer
    error = body["error"]
    assert (found, error["code"]) == (status, code), body
    assert error.keys() == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    return error["message"]


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("case", support.BAD_DOCUMENTS)
def test_bodies_that_are_no_json(server: Serving, path: str, case: str) -> None:
    body = support.BAD_DOCUMENTS[case]
    answer = server.ask("POST", path, body, Content_Type="application/json", **APP)
    assert answer[0] in (400, 413), answer
    assert answer[1]["error"]["message"]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("model", None),
        *(("prompt", value) for value in (["a", "b"], "", "\ud800")),
        *(("max_tokens", value) for value in ("3", 101, True)),
        ("temperature", -1),
        ("top_p", 0),
        ("n", 9),
        *(("logprobs", value) for value in (21, True)),
        *(("stop", value) for value in (7, [7], ["x"] * 17)),
        ("stream", "yes"),
        ("stream_options", 3),
        *(("user", value) for value in (7, "\ud800")),
        *(("vector", value) for value in ("\ud800", "no base64!")),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_object", "schema": 5}),
        ("response_format", {"type": "json_object", "schema": ["a", "b"]}),
        ("top_logprobs", 25),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}),
    ],
)
def test_parts_that_are_wrong(server: Serving, param: str, value: Any) -> None:
    change = {"vector": "AAAA", param: value} if value == "\ud800" and param == "user" else {param: value}
    refused(server.ask("POST", PLAIN, GOOD | change, **APP), 400, "invalid_value", param)


@pytest.mark.parametrize("name", ["tools", "functions", "logit_bias", "frequency_penalty", "best_of"])
def test_what_is_not_supported_is_not_ignored(server: Serving, name: str) -> None:
    refused(server.ask("POST", PLAIN, GOOD | {name: 2}, **APP), 400, "unsupported_parameter", name)


def test_no_error_of_a_stream_is_left_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        async def __aiter__(self) -> Any:
            raise BusyError("none")
            yield

    async def read() -> None:
        async for _ in _merged([Failing()] * 3):
            pytest.fail("it has no pieces")

    gc.collect()  # what other tests left tells of its own
    caplog.clear()
    with pytest.raises(BusyError):
        asyncio.run(read())
    gc.collect()  # a task that goes tells of an error that nobody asked for
    assert caplog.text == ""


@pytest.mark.parametrize(
    "messages",
    [None, [], "text", [7], [{"role": "king", "content": "x"}], [{"role": "user", "content": 7}],
     [{"role": "user", "content": [{"type": "image_url"}]}],
     [{"role": "user", "content": [{"type": "text", "text": [1]}]}],
     [{"role": "user", "content": "no template"}]],
)  # fmt: skip
def test_messages_that_are_none(server: Serving, messages: Any) -> None:
    body = {"model": "tiny", "messages": messages}
    text = str(refused(server.ask("POST", CHAT, body, **APP), 400, "invalid_value"))
    assert ("should be 'text'" if "image_url" in str(messages) else "messages") in text


def test_prompts_longer_than_the_context(server: Serving) -> None:
    long = "<|im_start|>" * 1500  # not read: it would take seconds
    for prompt, message in ((long, "18,000 bytes, and the context 256"), ("x" * 256, "256 tokens, and")):
        answer = server.ask("POST", PLAIN, GOOD | {"prompt": prompt}, **APP)
        assert message in refused(answer, 400, "context_length_exceeded", "prompt")


def test_bodies_that_are_too_large(server: Serving) -> None:
    answer = server.ask("POST", PLAIN, GOOD | {"prompt": "x" * 30_000}, **APP)
    assert "20,000" in refused(answer, 413, "body_too_large")
    connection = server.connect()  # without a length
    connection.request("POST", PLAIN, iter([b"x" * 9000] * 3), {"Content-Type": "application/json"} | APP)
    assert connection.getresponse().status == 413
    connection.close()


def test_routes_and_types_that_there_are_not(server: Serving) -> None:
    refused(server.ask("GET", "/v1/nothing", **APP), 404, "not_found")
    refused(server.ask("DELETE", PLAIN, **APP), 405, "method_not_allowed")
    form = {"Content_Type": "application/x-www-form-urlencoded"} | APP  # what curl says unasked
    refused(server.ask("POST", PLAIN, b"model=tiny", **form), 415, "unsupported_media_type")
    said = refused(server.ask("PUT", f"{VECTORS}/bob", b"\x00", **form), 415, "unsupported_media_type")
    assert "application/octet-stream for the bytes of a frame" in said


@pytest.mark.parametrize(
    "user", ["..%2F..%2Fetc%2Fpasswd", "x'%3B%20DROP%20TABLE%20vectors%3B--", "%00", "a%20b", "x" * 65]
)
def test_users_that_are_none(server: Serving, basis: Basis, user: str) -> None:
    for method, body in (("GET", None), ("DELETE", None), ("PUT", {"vector": as_text(framed(basis, user))})):
        status, answer = server.ask(method, f"{VECTORS}/{user}", body, **APP)
        assert status in (400, 404)
        assert answer["error"]["code"] in ("invalid_value", "not_found")


def test_each_of_many_vectors_has_a_result(server: Serving, basis: Basis) -> None:
    good = {user: as_text(framed(basis, user)) for user in ("kim", "lea")}
    vectors = {"kim": good["kim"], "odd": 7, "cut": "AAAAA", "lea": good["lea"], "a b": "AAAA", "\ud800": ""}
    status, body = server.ask("PUT", VECTORS, {"vectors": vectors}, **APP)
    assert (status, [each["user"] for each in body["data"]]) == (200, [*vectors])
    codes = [each.get("error", {}).get("code") for each in body["data"]]
    assert codes == [None, *["invalid_value"] * 2, None, *["invalid_value"] * 2]
    assert "vector must be a text" in body["data"][1]["error"]["message"]
    assert [server.ask("GET", f"{VECTORS}/{user}", **APP)[0] for user in good] == [200, 200]


@pytest.mark.parametrize(
    "limit", ["0", "1001", "-1", "1.5", "ten", "", "00000100000000", "000000001" + 5000 * "0", "1e2"]
)
def test_limits_that_are_none(server: Serving, limit: str) -> None:
    answer = server.ask("GET", f"{VECTORS}?limit={limit}", **APP)
    assert "it must be from 1 to 1000" in refused(answer, 400, "invalid_value", "limit")


def test_keys_and_the_users_that_they_stand_for(server: Serving, basis: Basis) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "Basic app-key-1"}):
        refused(server.ask("POST", PLAIN, GOOD, **headers), 401, "invalid_api_key")
        for path in ("/v1/models", f"{VECTORS}/alice", "/metrics"):
            refused(server.ask("GET", path, **headers), 401, "invalid_api_key")
    assert server.ask("GET", "/health")[0] == 200
    for user, seed in (("alice", 1), ("bob", 2)):
        vector = {"vector": as_text(framed(basis, user, seed, norm=3))}
        assert server.ask("PUT", f"{VECTORS}/{user}", vector, **APP)[0] == 200
    bodies = (GOOD | {"model": f"tiny@{user}"} for user in ("alice", "bob"))
    alice, bob = (server.ask("POST", PLAIN, body, **APP)[1] for body in bodies)
    assert alice["choices"] != bob["choices"]
    own = server.ask("POST", PLAIN, GOOD | {"model": "tiny@alice"}, **ALICE)
    assert own[1]["choices"] == alice["choices"]
    names = [model["id"] for model in server.ask("GET", "/v1/models", **ALICE)[1]["data"]]
    assert names == ["tiny", "tiny@alice"]
    found = [server.ask("GET", f"/v1/models/{name}", **ALICE)[0] for name in (*names, "tiny@bob")]
    assert found == [200, 200, 404]
    refused(server.ask("POST", PLAIN, GOOD | {"model": "tiny@bob"}, **ALICE), 403, "wrong_user")
    for method in ("GET", "PUT", "DELETE"):
        body = {} if method == "PUT" else None
        refused(server.ask(method, f"{VECTORS}/bob", body, **ALICE), 403, "wrong_user")


def test_a_slow_reader_holds_nobody_up(server: Serving) -> None:
    body = json.dumps(GOOD | {"stream": True, "max_tokens": 100, "n": 8, "logprobs": 20}).encode()
    with ExitStack() as stack:
        for _ in range(10):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(head(PLAIN, APP, len(body)) + body)
        support.wait_until(lambda: server.busy()[0] > 0)
        assert server.ask("POST", PLAIN, GOOD, **ALICE)[0] == 200  # the app itself may get 429
        support.wait_until(lambda: server.busy() == (0, 0))  # they are answered, whether it is read or not
