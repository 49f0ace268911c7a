"""`export` with names: real processes of the command against a hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hub_server
import models
import onnx_models
import pytest
from hub_server import HubServer
from invocation import Cli, contents

from tinylora_edge import load_bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    model, root = models.tiny_model("llama"), tmp_path_factory.mktemp("repos")
    gguf = models.write_gguf(model, root / "tiny.gguf")
    with hub_server.serve() as running:
        running.add("org/tiny-GGUF", {"tiny-F32.gguf": gguf})
        running.add("org/tiny", {path.name: path for path in onnx_models.tiny_hf("llama").iterdir()})
        yield running


@pytest.fixture
def home(server: HubServer, tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    server.requests.clear()
    ours = {key: value for key, value in environment.items() if not key.startswith(("HF_", "TINYLORA_"))}
    return ours | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": server.url,
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def run(process: Cli, home: dict[str, str], work: Path) -> Cli:
    """Run the command in `work` as that somebody; `also` goes into the environment."""

    def command(*words: object, also: dict[str, str] | None = None):
        return process(*words, env=home | (also or {}), cwd=work)

    return command


def test_a_name_is_all_that_it_takes(run: Cli, server: HubServer, work: Path) -> None:
    record = run("export", "org/tiny-GGUF", "--json").record()
    assert record["bundle"] == "tiny-GGUF"
    assert sorted(contents(work / "tiny-GGUF")) == ["base.gguf", "basis.gguf", "manifest.json"]
    manifest = json.loads((work / "tiny-GGUF" / "manifest.json").read_text())
    assert record["source"] == manifest["source"]
    assert manifest["base"]["name"] == "tiny-F32.gguf"
    commit = server.repos["org/tiny-GGUF"].find("main")
    assert manifest["source"]["base"]["revision"] == commit
    assert server.downloads == ["tiny-F32.gguf"]
    assert commit in run("inspect", "tiny-GGUF").done()

    run("export", "org/tiny-GGUF").refused("tiny-GGUF exists already")  # and is not taken for a model

    # The same again, without a hub.
    server.requests.clear()
    text = run("export", "org/tiny-GGUF", "-o", "again", also={"HF_HUB_OFFLINE": "1"}).done()
    assert commit in text
    assert load_bundle(work / "again").factors.digest == record["factors"]
    assert server.requests == []


def test_without_a_model_it_lists_the_names(run: Cli, server: HubServer) -> None:
    (listed,) = [r for r in run("export", "--json").record() if r["name"] == "gpt-oss-20b"]
    assert (listed["weights"], listed["quants"]) == ("openai/gpt-oss-20b", {"mxfp4": 12_109_566_624})
    text = run("export").done()
    assert all(name in text for name in ("qwen2.5-7b", "gpt-oss-20b", "117 B"))
    run("export", "-o", "out").misused("-o", "needs a MODEL")
    assert server.requests == []
