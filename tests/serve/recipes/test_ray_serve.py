"""The recipe for Ray Serve, with the real Ray: two replicas, and every answer its user's own.

Ray is no part of `dev`: it is half a gigabyte. `pip install "tinylora-edge[ray]"`, and this test runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tinylora_edge import Hmac, MicroVector, load_basis, runtime
from tinylora_edge.serve.store import SqliteStore

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

RECIPES = Path(__file__).parents[3] / "recipes" / "serve"
USERS = [f"user-{number}" for number in range(8)]
KEY = Hmac(bytes(range(32)))

DEPLOY = """
import sys, ray
from ray import serve
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
serve.start(http_options={"port": int(sys.argv[1])})
import ray_serve
serve.run(ray_serve.server)
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


def request(port: int, path: str, user: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    headers = {"X-Session-ID": user, "Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        found: bytes = response.read()
    return found


def test_two_replicas(tiny: Path, tmp_path: Path) -> None:
    basis = load_basis(tiny / "basis.gguf")
    vectors = {user: MicroVector.random(basis, 2.0, seed=seed) for seed, user in enumerate(USERS)}
    frames = {user: vector.to_bytes(basis, KEY, stream=user) for user, vector in vectors.items()}
    store = SqliteStore(tmp_path / "users.db", basis)
    store.import_frames(frames.items())
    store.close()
    (tmp_path / "mac").write_text(bytes(range(32)).hex())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "BUNDLE": str(tiny),
        "STORE": str(tmp_path / "users.db"),
        "MAC": str(tmp_path / "mac"),
        "N_CTX": "128",
        "PYTHONPATH": os.pathsep.join((str(RECIPES), os.environ.get("PYTHONPATH", ""))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # Ray kills what is not up in 5, on busy cores too
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", DEPLOY, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        text=True,
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "ready\n":
            assert line, Path(log.name).read_text("utf-8")[-3000:]
        answers, served = {}, {}
        for user in USERS * 2:
            body = {"model": f"tiny@{user}", "prompt": "hello", "max_tokens": 12, "temperature": 0}
            answer = json.loads(request(port, "/v1/completions", user, body))["choices"][0]["text"]
            assert answers.setdefault(user, answer) == answer
        for user in USERS:  # the replica that has this user says how many requests it had
            metrics = request(port, "/metrics", user).decode()
            counts = re.findall(
                r'^tinylora_requests_total\{route="/v1/completions",status="200"\} (.+)$', metrics, re.M
            )
            served[user] = int(float(counts[0]))
    finally:
        process.communicate("")
        log.close()
    loads = set(served.values())
    assert sum(loads) * (2 if len(loads) == 1 else 1) == 2 * len(USERS), served
    if len(loads) == 2:  # each replica's count is twice the number of its users
        assert all(load == 2 * sum(count == load for count in served.values()) for load in loads), served
    llm = runtime.load(tiny, n_ctx=128)
    for user, vector in vectors.items():
        with llm.using(vector):
            own = llm.create_completion("hello", max_tokens=12, temperature=0)["choices"][0]["text"]
        assert answers[user] == own
    llm.close()
