"""The end of a server: no stream is cut without saying why."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
from serving import Serving, serving

BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 4000, "temperature": 1, "stream": True}


def streamed(server: Serving, begun: threading.Event, ends: list[str]) -> None:
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps(BODY), {"Content-Type": "application/json"})
    response = connection.getresponse()
    last = ""
    while line := response.readline():
        if line.startswith(b"data: "):
            last = line.decode().removeprefix("data: ").strip()
            begun.set()
    ends.append(last)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_say_why_they_end(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, tiny, "--n-ctx", "4096") as server:
        begun, ends = threading.Event(), []
        threads = [threading.Thread(target=streamed, args=(server, begun, ends)) for _ in range(12)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        server.process.send_signal(number)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) == 128 + number
        log = server.lines()
    cut = [json.loads(end)["error"] for end in ends if end != "[DONE]"]
    assert len(ends) == 12
    assert {error["code"] for error in cut} <= {"unavailable"}
    assert [line for line in log if line["level"] != "info"] == []
