"""The TRL engine: what it writes, its gradient, silent steps, resuming, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import trl_world
from trl_world import TEMPLATE, rows_of, steps, write_tokenizer

from tinylora_edge import MicroVector, TrainError, load_bundle
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Options, train
from tinylora_edge.train.peft_adapter import peft_model
from tinylora_edge.train.trl import check_prompts, load_tokenizer, train_trl


@pytest.fixture
def options(tiny: Path) -> Options:
    return trl_world.options(tiny)


def test_learns_and_ships(tiny: Path, options: Options, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    longer = replace(options, steps=8, prompts=8, samples=8, validate_every=4, lr=0.3, evaluate=True)
    task = trl_world.letters_task()
    outcome = train_trl(tiny / "bundle", task, tmp_path / "v.bin", options=longer, report=rows.append)
    rewards = [row["reward"] for row in steps(rows)]
    assert len(rewards) == 8
    vector = MicroVector.from_bytes(outcome.path.read_bytes(), load_bundle(tiny / "bundle").bases)
    assert (len(outcome.path.read_bytes()), vector.dtype) == (37, "bf16")
    assert np.allclose(vector.values, outcome.result.vector.values, rtol=2**-8)
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    learned = [row for row in rows if row.get("event") != "measuring"]
    assert manifest["curve"] == learned == rows_of(tmp_path / "v.bin")
    assert manifest["engine"]["processes"] == 1
    assert manifest["held_out"]["n"] == len(task.held_out)
    assert not (tmp_path / "v.bin.run").exists()

    own = replace(longer, method="grpo", start=(0.01,) * 13, steps=1, validate_every=1)
    train(tiny / "bundle", task, tmp_path / "own.bin", options=own)
    expected = json.loads((tmp_path / "own.bin.json").read_text())
    assert manifest.keys() | {"data"} == expected.keys() | {"engine"}
    assert all(manifest[key].keys() == expected[key].keys() for key in ("options", "result", "held_out"))


def test_checkpoints_ask_no_hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT would look up the bundle's name there, since there is no config.json in a bundle."""
    from peft.utils import save_and_load

    names: list[str] = []
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda name, file: names.append(name))
    model = models.tiny_model("llama")
    model.name_or_path = model.config._name_or_path = str(tiny / "bundle")
    peft_model(model, load_bundle(tiny / "bundle").basis(numbers=13)).save_pretrained(tmp_path / "asks not")
    assert names == []


def test_agrees_with_the_gradient_of_the_default_engine(tiny: Path, tmp_path: Path) -> None:
    """TRL's first gradient on given completions is the learner's."""
    import torch

    from tinylora_edge.train import Adapter, Group, Learner
    from tinylora_edge.train.adapter import load_model

    rows: list[dict[str, Any]] = []
    trainer = trl_world.fixed_run(tiny, tmp_path / "v.bin", rows)
    batch = next(iter(trainer.get_train_dataloader()))
    prompts = [row["prompt"] for row in batch]
    trainer.model.train()
    drawn_ones = trl_world.completions(prompts, trainer)
    task, end = trl_world.letters_task(), trl_world.END
    model = load_model(tiny / "weights", "fp32")
    adapter = Adapter(model, load_bundle(tiny / "bundle").basis(numbers=13))
    learner = Learner(model, adapter, temperature=task.temperature)
    groups = []
    for start in range(0, len(prompts), 4):
        drawn = [np.array(c, np.int32) for c in drawn_ones["completion_ids"][start : start + 4]]
        texts = [bytes(c[c < 256].astype(np.uint8)).decode() for c in drawn]
        completions = [Completion(t, c[-1] == end, len(c)) for t, c in zip(texts, drawn, strict=True)]
        scores = [task.score(each, task.train[0]) for each in completions]
        advantage = (scores - np.mean(scores)) / (np.std(scores, ddof=1) + 1e-4)  # TRL's
        prompt = np.array(drawn_ones["prompt_ids"][start], np.int32)
        groups.append(Group(prompt, drawn, advantage.astype(np.float32)))
    gradient = learner.gradient(groups)
    learner.close()
    assert rows[1]["reward"] > 0
    assert rows[1]["grad"] == pytest.approx(torch.linalg.norm(gradient.grad).item(), rel=1e-3)


def test_no_step_without_signal(tiny: Path, options: Options, tmp_path: Path) -> None:
    """Adam's momentum must not move v on: silent steps leave it as it is."""
    calls = 0

    def fading(completion: Completion, sample: Sample) -> float:
        nonlocal calls
        calls += 1
        return trl_world.letters(completion, sample) if calls <= 8 + 24 else 0.0

    task = replace(trl_world.letters_task(), reward=fading)
    chosen = replace(options, steps=4, validate_every=100)
    rows: list[dict[str, Any]] = []
    outcome = train_trl(tiny / "bundle", task, tmp_path / "v.bin", options=chosen, report=rows.append)
    # no answer got a reward at the end, so the start is the best
    result = outcome.result
    assert (result.best_step, result.best_score, result.vector.norm) == (0, result.start_score, 0)
    assert rows[-1]["validation"] == 0 < result.start_score
    norms = [row["norm"] for row in steps(rows)]
    assert 0 < norms[0] != norms[1]
    assert norms[1] == norms[2] == norms[3]
    assert [row["signal"] for row in steps(rows)][2:] == [0, 0]

    silent = replace(task, reward=lambda completion, sample: 0.5)
    with pytest.raises(TrainError, match="gives no signal: in 4 steps"):
        train_trl(tiny / "bundle", silent, tmp_path / "w.bin", options=chosen)
    assert not list(tmp_path.glob("w.bin*"))


def test_resumes_to_the_same_numbers(tiny: Path, options: Options, tmp_path: Path) -> None:
    """With KL PEFT saves a second adapter: the reference."""
    options = replace(options, steps=6, validate_every=3)
    chosen: dict[str, Any] = {"options": options, "grpo": {"beta": 0.05}}
    task = trl_world.letters_task()
    rows: list[dict[str, Any]] = []
    whole = train_trl(tiny / "bundle", task, tmp_path / "a.bin", **chosen, report=rows.append)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise EOFError

    with pytest.raises(EOFError):
        train_trl(tiny / "bundle", task, tmp_path / "b.bin", **chosen, report=stop)
    with pytest.raises(TrainError, match="go on with --resume"):
        train_trl(tiny / "bundle", task, tmp_path / "b.bin", **chosen)
    resumed = train_trl(tiny / "bundle", task, tmp_path / "b.bin", **chosen, resume=True)
    for one, other in zip(resumed.result.phases, whole.result.phases, strict=True):
        assert one == replace(other, seconds=one.seconds)
    assert resumed.result.vector == whole.result.vector
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    assert steps(rows_of(tmp_path / "b.bin")) == steps(rows)
    assert whole.result.best_step > 0 or whole.result.vector.norm == 0


@pytest.mark.parametrize(
    ("change", "grpo", "message"),
    [
        ({"method": "sft"}, {}, "has no method sft"),
        ({"lr": None}, {}, "has no step size of its own"),
        ({"keep": True}, {}, "has no keep"),
        ({"frame_dtype": "q4", "numbers": None, "rank": 2}, {}, "has no frame_dtype"),
        ({"start": (0.1,) * 13}, {}, "has no start"),
        ({"under": b"frame"}, {}, "has no under"),
        ({"validation": 0}, {}, "at least 2"),
        ({"validation": 46}, {}, "48 training prompts, but 46"),
        ({}, {"per_device_train_batch_size": 5}, "12 completions a step .3 prompts x 4. do not divide"),
        ({}, {"no_such_field": 1}, "no_such_field"),
        ({}, {"num_generations": 1}, "GRPO requires at least 2|divisible"),
        ({}, {"output_dir": "elsewhere"}, "output_dir cannot be set"),
        ({}, {"eval_on_start": False}, "eval_on_start cannot be set"),
        ({}, {"use_transformers_continuous_batching": True}, "bfloat16"),
    ],
)
def test_refuses_settings_that_cannot_work(tiny, options, tmp_path, change, grpo, message):
    options = replace(options, **change)
    with pytest.raises(TrainError, match=message):
        train_trl(tiny / "bundle", trl_world.letters_task(), tmp_path / "v.bin", options=options, grpo=grpo)
    assert list(tmp_path.iterdir()) == []


def test_refuses_prompts_that_the_device_sees_otherwise(tiny: Path, tmp_path: Path) -> None:
    bundle, tokenizer = tiny / "bundle", load_tokenizer(tiny / "weights")
    task = trl_world.letters_task()
    check_prompts(tokenizer, task, task.train, room=20, bundle=bundle)
    with pytest.raises(TrainError, match=r"has 9 tokens, but the model's context leaves room for 8"):
        check_prompts(tokenizer, task, task.train, room=8)
    texts = [Sample("plain text", raw=True), *task.train]
    with pytest.raises(TrainError, match="mixes raw and chat prompts"):
        check_prompts(tokenizer, task, texts, room=20)
    check_prompts(tokenizer, task, texts[:1], room=20, bundle=bundle)
    write_tokenizer(tmp_path / "other", TEMPLATE.replace("<eos>", "<eos>\n"))
    with pytest.raises(TrainError, match="'say 0' becomes other tokens here"):
        check_prompts(load_tokenizer(tmp_path / "other"), task, task.train, room=20, bundle=bundle)
    tokenizer.chat_template = None
    with pytest.raises(TrainError, match="no chat template"):
        check_prompts(tokenizer, task, task.train, room=20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match="no tokenizer in"):
        load_tokenizer(tmp_path / "empty")


def test_the_tokenizer_of_the_real_gguf_is_the_device_s(smollm2_bundle: Path) -> None:
    prompts = [
        Sample(({"role": "user", "content": "List: fox, naïve café, 12,345 — x. Which is last?"},)),
        Sample(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n\n  there"})),
    ]
    task = Task("t", prompts, [], trl_world.letters)
    tokenizer = load_tokenizer(load_bundle(smollm2_bundle).base)
    check_prompts(tokenizer, task, prompts, room=100, bundle=smollm2_bundle)
