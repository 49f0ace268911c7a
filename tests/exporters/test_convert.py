"""A vector in the formats of other programs, each read by the program itself: what it makes of them is what
our runtime makes of the vector. ONNX Runtime's own format: tests/formats/test_onnx_adapter.py."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import llama_cpp
import models
import numpy as np
import pytest
import smollm2
import support
from peft import PeftModel

from tinylora_edge import ExportError, MicroVector, load_basis, runtime
from tinylora_edge.exporters import ExportSettings, convert, export_gguf

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "logits_all": True}
# Rounded to float16, keys and values that are 1e-7 apart are 1e-3 apart now and then.
OPTIONS |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "verbose": False}
TOKENS = [1, 5, 9, 33, 7, 21]
SETTINGS = {
    "u=1": ExportSettings(groups=5),
    "u=3": ExportSettings(groups=2, u=3),
    "f16": ExportSettings(groups=3, factor_dtype="f16"),
}
PROMPT = "The three primary colours are red, yellow and"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("convert")
    base = models.write_gguf(models.tiny_model("llama"), root / "tiny.gguf")
    made = {name: export_gguf(base, root / name, settings=s).output for name, s in SETTINGS.items()}
    forms = support.learned_forms(load_basis(made["u=1"] / "basis.gguf"), 5)
    made |= {name: support.bundle_with(basis, base, root / name) for name, basis in forms.items()}
    return made | {"hf": models.write_hf(models.tiny_model("llama"), root / "hf")}


def ours(bundle: Path, vector: MicroVector) -> np.ndarray:
    llm = runtime.load(bundle, vector, **OPTIONS)
    logits = models.llama_logits(llm, TOKENS)
    llm.close()
    return logits


@pytest.mark.parametrize("name", [*SETTINGS, "dense", "tiled"])
def test_llama_cpp_loads_a_gguf_lora(world: dict[str, Path], tmp_path: Path, name: str) -> None:
    basis = load_basis(world[name] / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=3)
    convert.write_gguf_lora(basis, vector, tmp_path / "v.gguf")
    llm = llama_cpp.Llama(str(world[name] / "base.gguf"), lora_path=str(tmp_path / "v.gguf"), **OPTIONS)
    found = models.llama_logits(llm, TOKENS)
    llm.close()
    expected = ours(world[name], vector)
    assert np.abs(expected - ours(world[name], MicroVector.zeros(basis))).max() > 0.01, "it does something"
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["u=1", "f16", "dense"])
def test_peft_loads_a_lora(world: dict[str, Path], tmp_path: Path, name: str) -> None:
    basis = load_basis(world[name] / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=4)
    convert.write_peft_lora(basis, vector, tmp_path / "lora", world["hf"])
    model = models.tiny_model("llama")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora").eval()
    with models.merged(model, basis, vector) as merged:
        np.testing.assert_allclose(
            models.torch_logits(loaded, TOKENS), models.torch_logits(merged, TOKENS), atol=1e-4
        )


def test_of_another_model(world: dict[str, Path], tmp_path: Path) -> None:
    basis = load_basis(world["u=1"] / "basis.gguf")
    vector, deeper = (
        MicroVector.zeros(basis),
        models.write_hf(models.tiny_model("llama", blocks=1), tmp_path / "one"),
    )
    with pytest.raises(ExportError, match=r"has no layer for blk\.1\.attn_q\.weight.*another model"):
        convert.write_peft_lora(basis, vector, tmp_path / "lora", deeper)
    wider = models.write_hf(models.tiny_model("llama", hidden=128), tmp_path / "wide")
    with pytest.raises(ExportError, match="another model"):
        convert.write_peft_lora(basis, vector, tmp_path / "lora", wider)
    assert not (tmp_path / "lora").exists()


def server() -> str | None:
    """Where llama-server is: named, beside the Python of the tests (`make llama-server`), or on the path."""
    named = os.environ.get("LLAMA_SERVER")
    return named or shutil.which("llama-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(server() is None, reason="there is no llama-server: make llama-server builds one")
def test_llama_server_says_what_our_runtime_says(smollm2_gguf: Path, tmp_path: Path) -> None:
    bundle = export_gguf(smollm2.requantized(smollm2_gguf, smollm2.ALL_F32), tmp_path / "bundle").output
    basis = load_basis(bundle / "basis.gguf")
    vector = MicroVector.random(basis, 0.6, seed=3)
    convert.write_gguf_lora(basis, vector, tmp_path / "v.gguf")
    llm = runtime.load(bundle, **{**OPTIONS, "n_ctx": 512, "logits_all": False})
    plain = llm(PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"]
    llm.swap(vector.to_bytes(basis))
    expected = llm(PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"]
    llm.close()
    assert expected != plain
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [str(server()), "-m", str(bundle / "base.gguf"), "--lora", str(tmp_path / "v.gguf")]
    command += ["--host", "127.0.0.1", "--port", port, "-c", "512", "-np", "1", "-t", "1", "-tb", "1"]
    command += ["-ctk", "f32", "-ctv", "f32", "-ngl", "0"]
    body = json.dumps({"prompt": PROMPT, "n_predict": 24, "temperature": 0}).encode()
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    said = (tmp_path / "log").read_text(errors="replace")
                    pytest.fail(f"llama-server did not start: {said[-2000:]}")
                time.sleep(0.3)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=240) as answer:
            assert json.load(answer)["content"] == expected
    finally:
        process.terminate()
        process.wait(30)
