"""Learning on a device, run where there is nothing but what a device has: no PyTorch."""

from __future__ import annotations

from pathlib import Path

import models
import venvs

from tinylora_edge.exporters import export_gguf

ROOT = Path(__file__).parents[2]


def test_a_model_learns_without_torch(tmp_path: Path) -> None:
    assert not {"torch", "transformers", "onnx", "scipy"} & set(venvs.closure("tinylora-edge[llama,cli]"))
    device = venvs.linked(tmp_path / "venv", "tinylora-edge[llama,cli]")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "tinylora_edge").symlink_to(ROOT / "tinylora_edge")
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    gguf = models.write_gguf(
        models.tiny_model("llama"), tmp_path / "tiny.gguf", metadata={"tokenizer.chat_template": template}
    )
    bundle = export_gguf(gguf, tmp_path / "bundle").output
    output = venvs.run(device, ROOT / "examples" / "tune_on_device.py", bundle, "15ktokens")
    assert "PyTorch is not installed here." in output
    assert "step 1: reward" in output
    assert output.count("before: ") == output.count("after: ") == 6
    assert (bundle / "mine.bin").stat().st_size == 63
    assert not (bundle / "mine.state").exists()
    mine, own = tmp_path / "mine.txt", tmp_path / "own.bin"
    command = "from tinylora_edge.cli import main; main()"
    mine.write_text("".join(f"on my way, {n} min\n" for n in range(60)))
    options = "--under", bundle / "mine.bin", "--numbers", 13, "--budget", "8ktokens", "--no-evaluate"
    venvs.run(device, "-c", command, "tune", bundle, mine, "-o", own, *options)
    assert own.stat().st_size == 63
