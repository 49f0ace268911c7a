"""What the tests of the TRL engine and its recipes share: a tokenizer, a task, given completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Options
from tinylora_edge.train import trl as engine

ROOT = Path(__file__).parents[2]
RECIPES = [ROOT / "recipes" / f"{task}.toml" for task in ("gsm8k", "math")]
TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>{% endif %}"
)


def write_tokenizer(path: Path, template: str = TEMPLATE) -> None:
    """The vocabulary of `models.write_gguf` as transformers keeps it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = {character: byte for byte, character in bytes_to_unicode().items()}
    special = {"<bos>": 256, "<eos>": 257, "<pad>": 258, "<unk>": 259}
    inner = Tokenizer(BPE(vocab=characters | special, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)


def steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows if "event" not in row]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return json.loads(Path(f"{output}.json").read_text())["curve"]  # type: ignore[no-any-return]


LIMIT, END = 6, 257


def letters(completion: Completion, sample: Sample) -> float:
    return sum(c.isascii() and c.isalpha() for c in completion.text) / max(len(completion.text), 1)


def letters_task() -> Task:
    prompts = [Sample(({"role": "user", "content": f"say {i}"},), f"answer {i}") for i in range(56)]
    return Task("letters", prompts[:48], prompts[48:], letters, max_tokens=LIMIT, temperature=1.0)


def options(folder: Path) -> Options:
    sizes = {"steps": 4, "prompts": 3, "samples": 4, "validation": 8, "validate_every": 2, "workers": 1}
    what = {"numbers": 13, "weights": str(folder / "weights"), "dtype": "fp32"}
    return Options(**sizes, **what, lr=0.2, seed=1, evaluate=False)


def completions(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """The completions of a batch, by prompt and place in the group alone: the same however it is shared out.

    They differ in length, so that the losses of a group do not cancel.
    """
    each = trainer.num_generations if trainer.model.training else 1
    first = trainer.accelerator.process_index * len(prompts)
    drawn = []
    for place, prompt in enumerate(prompts, first):
        rng = np.random.default_rng([*prompt[0]["content"].encode(), place % each])
        length = int(rng.integers(1, LIMIT + 1))
        drawn.append([*rng.integers(32, 127, length - 1).tolist(), END])
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": drawn, "logprobs": None}


def fixed_run(folder: Path, output: Path, rows: list[dict[str, Any]]) -> Any:
    """Train on given completions, with a KL term; returns TRL's trainer."""
    made = []

    class Recorded(engine.GRPOTrainer):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, rollout_func=completions)
            made.append(self)

    chosen = {"options": options(folder), "grpo": {"beta": 0.1}}
    with patch.object(engine, "GRPOTrainer", Recorded):
        engine.train_trl(folder / "bundle", letters_task(), output, **chosen, report=rows.append)
    return made[0]
