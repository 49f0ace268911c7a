"""Options of the engines, on every command that runs a model: they reach it, or are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import onnx_bundles
import pytest
from invocation import Cli

from tinylora_edge import runtime
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.runtime.libraries import built_for_a_gpu

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
QUESTIONS = "".join(f"question {letter}?\n" for letter in "abcdefghijklmnop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task, questions, and a bundle for llama.cpp."""
    folder = tmp_path_factory.mktemp("engine-options")
    metadata = {"tokenizer.chat_template": TEMPLATE}
    gguf = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf", metadata=metadata)
    export_gguf(gguf, folder / "llama", settings=ExportSettings(groups=5))
    rows = [{"prompt": f"prompt {i}", "answer": f"answer {i}"} for i in range(60)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "questions.txt").write_text(QUESTIONS)
    return folder


@pytest.fixture(params=["llama", "onnx"])
def bundle(request: pytest.FixtureRequest, folder: Path) -> Path:
    return folder / "llama" if request.param == "llama" else onnx_bundles.tiny()


def commands(bundle: Path, folder: Path, out: Path) -> dict[str, tuple[object, ...]]:
    task = ("--task", folder / "task.jsonl", "--reward", "regex('[a-z]')")
    teacher = ("--system", "!!!! HELLO !!!!", "--questions", folder / "questions.txt", "--on-device")
    return {
        "run": ("run", bundle, "Hello", "--max-tokens", 2),
        "eval": ("eval", bundle, *task, "-n", 4, "--max-tokens", 2, "--json"),
        "eval, a contest": ("eval", bundle, *task, "-n", 4, "--max-tokens", 2, "--system", "x", "--json"),
        "tune": ("tune", bundle, *task, "--budget", "9ktokens", "--max-tokens", 2, "--no-drift", "-o", out),
        "distill": ("distill", bundle, *teacher, "--budget", "60ktokens", "--no-drift", "--json", "-o", out),
    }


@pytest.mark.filterwarnings("ignore::tinylora_edge.errors.NotImprovedWarning")
@pytest.mark.parametrize("name", ["run", "eval", "eval, a contest", "tune", "distill"])
def test_threads_reach_the_engine(
    cli: Cli, bundle: Path, folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    load = runtime.load

    def seen(*args: Any, **options: Any) -> Any:
        asked.append(options)
        return load(*args, **options)

    monkeypatch.setattr(runtime, "load", seen)
    ran = cli(*commands(bundle, folder, tmp_path / "v.bin")[name], "--threads", 1)
    assert ran.code == 0, ran.stderr  # it may warn that nothing did better than the start
    assert [options["n_threads"] for options in asked] == [1]
    assert [options.get("n_threads_batch") for options in asked] == [
        1 if asked[0]["engine"] == "llama" else None
    ]


@pytest.mark.parametrize("name", ["run", "eval", "tune", "distill"])
def test_layers_on_a_gpu_are_llama_cpps(
    cli: Cli, bundle: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    command = (*commands(bundle, folder, tmp_path / "v.bin")[name], "--threads", 1)
    if bundle == onnx_bundles.tiny():
        cli(*command, "--gpu-layers", 1).refused("--gpu-layers 1 is an option of llama.cpp", "onnx runs")
    elif not built_for_a_gpu():
        cli(*command, "--gpu-layers", -1).refused("--gpu-layers -1", "built for no GPU")
    cli(*command, "--gpu-layers", -2).misused("--gpu-layers")
    assert not list(tmp_path.iterdir())


def test_no_layers_on_a_gpu_is_what_llama_cpp_does(cli: Cli, folder: Path) -> None:
    command = commands(folder / "llama", folder, folder)["run"]
    assert cli(*command, "--gpu-layers", 0).done() == cli(*command).done()


def test_a_prompt_is_distilled_in_onnx_runtime(cli: Cli, folder: Path, tmp_path: Path) -> None:
    command = commands(onnx_bundles.tiny(), folder, tmp_path / "v.bin")["distill"]
    ran = cli(*command, "--threads", 1)
    assert ran.code == 0, ran.stderr  # it may warn, too
    record = json.loads(ran.stdout)
    assert record["bytes"] == (tmp_path / "v.bin").stat().st_size == 7 + 5 * 4 + 4
    assert record["share"] == pytest.approx(1 - record["after"] / record["before"])
    assert record["tokens"] <= 60_000
    cli("vector", "inspect", tmp_path / "v.bin", onnx_bundles.tiny()).done()
    cli(*command[:2], "--system", "x", "-o", tmp_path / "w.bin", "--engine", "onnx").misused("--on-device")
