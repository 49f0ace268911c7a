"""What the tests of the TRL engine and its recipes share: a tiny model, task files, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import models

from tinylora_edge.exporters import ExportSettings, export_gguf

ROOT = Path(__file__).parents[2]
RECIPES = [ROOT / "recipes" / f"{task}.toml" for task in ("gsm8k", "math")]
MODELS = ("qwen2.5-7b", "qwen2.5-3b", "qwen2.5-1.5b", "qwen2.5-0.5b")
TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>{% endif %}"
)


def write_tokenizer(path: Path, template: str = TEMPLATE) -> None:
    """The vocabulary of `models.write_gguf` as transformers keeps it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}
    special = {"<bos>": 256, "<eos>": 257, "<pad>": 258, "<unk>": 259}
    inner = Tokenizer(BPE(vocab=characters | special, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)


def prepare(folder: Path) -> Path:
    """A bundle of a tiny random model, 13 tiled groups, and the same model for transformers."""
    model = models.tiny_model("llama")
    gguf = models.write_gguf(model, folder / "tiny.gguf", metadata={"tokenizer.chat_template": TEMPLATE})
    export_gguf(gguf, folder / "bundle", settings=ExportSettings(groups=13))
    write_tokenizer(models.write_hf(model, folder / "weights"))
    return folder


def steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows if "event" not in row]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return json.loads(Path(f"{output}.json").read_text())["curve"]  # type: ignore[no-any-return]


def write_problems(folder: Path) -> dict[str, Path]:
    """Task files as the recipes name them, with problems enough for a step and a validation."""
    gsm8k = [
        {"question": f"Ann has {n} pens and buys {n + 2}. How many?", "answer": f"Sum.\n#### {2 * n + 2}"}
        for n in range(280)
    ]
    maths = [
        {"problem": f"What is ${n}/2$?", "solution": rf"It is $\boxed{{\frac{{{n}}}{{2}}}}$."}
        for n in range(400)
    ]
    for name, rows in (("gsm8k", gsm8k), ("train", maths[:394]), ("test", maths[392:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(ROOT / "recipes" / "math_boxed.py"), str(folder / "train.jsonl")]
    command += ["--test", str(folder / "test.jsonl"), "-o", str(folder / "math.jsonl")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "392 to train on, 8 held out" in made.stderr
    return {"gsm8k": Path(f"gsm8k:{folder / 'gsm8k.jsonl'}"), "math": folder / "math.jsonl"}


def launch_two(folder: Path, problems: dict[str, Path]) -> None:
    """One launch for all that two processes are needed for; starting them is what takes time."""
    recipe = [str(folder / "bundle"), "-o", str(folder / "recipe.bin"), "--recipe", str(RECIPES[0])]
    recipe += ["--task", str(problems["gsm8k"]), "--weights", str(folder / "weights")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = str(Path(__file__).with_name("trl_worker.py"))
    command += [worker, str(folder), *recipe, "--dry-run", "--lr", "2e-4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CI": "1"}  # CI: TRL sends no telemetry
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "recipe.out").write_text(done.stdout)
