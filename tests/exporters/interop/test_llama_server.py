"""Stock llama-server personalizes each request by 13 numbers, with no code of ours in it.

Runs where `llama-server` is beside the Python that runs the tests, as `make llama-server` puts it, or on the
path, or named by the environment variable LLAMA_SERVER.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import smollm2

from tinylora_edge import Basis, MicroVector, load_basis, runtime
from tinylora_edge.exporters import export_gguf
from tinylora_edge.exporters.interop import llama_lora

PROMPT = "The three primary colours are red, yellow and"
TOKENS = 24
SEEDS = (3, 7)
NORM = 0.6


def binary() -> str | None:
    named = os.environ.get("LLAMA_SERVER")
    return named or shutil.which("llama-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


pytestmark = pytest.mark.skipif(
    binary() is None, reason="there is no llama-server: make llama-server builds one"
)


@pytest.fixture(scope="module")
def bundle(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model with an F32 base, where two right implementations agree exactly."""
    f32 = smollm2.requantized(smollm2_gguf, smollm2.ALL_F32)
    return export_gguf(f32, tmp_path_factory.mktemp("server") / "bundle").output


@pytest.fixture(scope="module")
def basis(bundle: Path) -> Basis:
    return load_basis(bundle / "basis.gguf")


class Server:
    """A llama-server with the adapters of a basis, none of which applies by itself."""

    def __init__(self, model: Path, adapters: list[Path], log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [
            *(str(binary()), "-m", str(model), "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]),
            *("-c", "512", "-np", "1", "-t", "1", "-tb", "1", "-ctk", "f32", "-ctv", "f32", "-ngl", "0"),
            *llama_lora.server_arguments(adapters),
        ]
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + 240
        while True:
            try:
                if self.get("/health") == {"status": "ok"}:
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"llama-server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.3)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=120) as answer:
            return json.load(answer)

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=240) as answer:
            return json.load(answer)

    def complete(self, **fields: Any) -> str:
        request = {"prompt": PROMPT, "n_predict": TOKENS, "temperature": 0, **fields}
        return str(self.post("/completion", request)["content"])


@pytest.fixture(scope="module")
def server(bundle: Path, basis: Basis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("adapters")
    running = Server(bundle / "base.gguf", llama_lora.write_groups(basis, root / "groups"), root / "log")
    yield running
    running.process.terminate()
    running.process.wait(30)


@pytest.fixture(scope="module")
def expected(bundle: Path, basis: Basis) -> dict[int | None, str]:
    """What our runtime says: the base, and with a vector of each seed."""
    options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0}
    llm = runtime.load(bundle, **options)
    said = {}
    for seed in (None, *SEEDS):
        if seed is None:
            llm.clear()
        else:
            llm.swap(MicroVector.random(basis, NORM, seed=seed).to_bytes(basis))
        said[seed] = llm(PROMPT, max_tokens=TOKENS, temperature=0)["choices"][0]["text"]
    llm.close()
    assert len(set(said.values())) == 3, said
    return said


def test_each_request_has_its_own_vector(
    server: Server, basis: Basis, expected: dict[int | None, str]
) -> None:
    """Prompts are cached, as by default, and the base is a vector of zeros like any other."""
    vectors = {seed: MicroVector.random(basis, NORM, seed=seed) for seed in SEEDS}
    lists = {seed: llama_lora.scales(basis, vector) for seed, vector in vectors.items()}
    lists[None] = llama_lora.scales(basis, MicroVector.zeros(basis))
    first, second = SEEDS
    for seed in (first, second, first, None, second, second, None):
        assert server.complete(lora=lists[seed]) == expected[seed], seed


def test_another_prompt_in_between_brings_no_cache_of_another_vector(
    server: Server, basis: Basis, expected: dict[int | None, str]
) -> None:
    first, second = (llama_lora.scales(basis, MicroVector.random(basis, NORM, seed=seed)) for seed in SEEDS)
    assert server.complete(lora=first) == expected[SEEDS[0]]
    server.complete(lora=second, prompt="def fibonacci(n):\n    if n < 2:\n        return")
    assert server.complete(lora=second) == expected[SEEDS[1]]


def test_no_adapter_applies_by_itself(server: Server, expected: dict[int | None, str]) -> None:
    assert server.complete(cache_prompt=False) == expected[None]


def test_a_vector_for_all_requests(server: Server, basis: Basis, expected: dict[int | None, str]) -> None:
    """The server keeps the slot's cache over this change, so the requests after it do without."""
    seed = SEEDS[0]
    vector = MicroVector.random(basis, NORM, seed=seed)
    server.post("/lora-adapters", llama_lora.scales(basis, vector))
    try:
        assert llama_lora.from_scales(basis, server.get("/lora-adapters")) == vector
        assert server.complete(cache_prompt=False) == expected[seed]
    finally:
        server.post("/lora-adapters", llama_lora.scales(basis, MicroVector.zeros(basis)))
    assert server.complete(cache_prompt=False) == expected[None]
