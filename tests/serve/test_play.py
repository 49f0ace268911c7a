"""`play`: it opens a page in the browser, keeps what clicks taught in a folder, and leaves no trace."""

from __future__ import annotations

import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, playing

CHAT: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 1, "seed": 3}


def learned(server: Serving, token: dict[str, str]) -> tuple[list[float], int]:
    status, about = server.ask("GET", "/v1/page", **token)
    assert status == 200, about
    assert about["vector"] == about["learned"]
    return about["learned"]["values"], about["learned"]["sequence"]


def key(address: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {address.partition('#token=')[2]}"}


def test_a_browser_is_opened_and_what_clicks_taught_is_kept(tiny: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    script = tmp_path / "browser"
    script.write_text(f"#!{sys.executable}\nimport sys\nopen({str(opened)!r}, 'a').write(sys.argv[1])\n")
    script.chmod(0o755)
    options = (tiny, "--keep", tmp_path / "kept")
    with playing(tmp_path, *options, browser=f"{script} %s") as (server, address):
        until = time.monotonic() + 60
        while not (opened.exists() and opened.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
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
        assert server.log.read_text("utf-8") == "Ctrl-C ends it\n"
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
