"""The TRL engine: what it writes, one process against two, steps without signal, resuming, recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import trl_worker

from tinylora_edge import Bundle, MicroVector, TrainError
from tinylora_edge.exporters import Settings as ExportSettings
from tinylora_edge.exporters import export_gguf
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Loss, Options, train
from tinylora_edge.train import trl as engine
from tinylora_edge.train._trl_prompts import check_prompts, end_ids, load_tokenizer, reward_function
from tinylora_edge.train.peft_tinylora import peft_model, vector_of
from tinylora_edge.train.recipes import main, read_recipe
from tinylora_edge.train.trl import grpo_fields, train_trl

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("trl"))


@pytest.fixture
def options(tiny: Path) -> Options:
    return trl_worker.options(tiny)


def steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows if "event" not in row]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(f"{output}.run") / "metrics.jsonl").read_text().splitlines()]


def test_learns_and_ships(tiny: Path, options: Options, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    settings = replace(options.settings, steps=32, prompts=8, validate_every=16, lr=0.3)
    longer = replace(options, settings=settings, samples=8, wire="bf16", sequence=3, evaluate=True)
    task = trl_worker.letters_task()
    outcome = train_trl(tiny / "bundle", task, tmp_path / "v.bin", options=longer, report=rows.append)
    rewards = [row["reward"] for row in steps(rows)]
    assert len(rewards) == 32
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8]) + 0.03
    assert outcome.result.best_score > outcome.result.start_score
    basis = Bundle.find(tiny / "bundle").basis
    vector = MicroVector.from_bytes(outcome.path.read_bytes(), basis)
    assert (len(outcome.path.read_bytes()), vector.dtype, vector.sequence) == (37, "bf16", 3)
    assert np.allclose(vector.values, outcome.result.vector.values, rtol=2**-8)
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert manifest["curve"] == rows == rows_of(tmp_path / "v.bin")
    assert manifest["engine"]["processes"] == 1
    assert manifest["held_out"]["n"] == len(task.held_out)
    assert not (tmp_path / "v.bin.run" / "trl").exists()

    own = replace(longer, settings=replace(settings, steps=1, validate_every=1), bf16_copy=False)
    train(tiny / "bundle", task, tmp_path / "own.bin", options=own)
    expected = json.loads((tmp_path / "own.bin.json").read_text())
    assert manifest.keys() == expected.keys() | {"engine"}
    assert all(manifest[key].keys() == expected[key].keys() for key in ("options", "result", "held_out"))


def test_checkpoints_ask_no_hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT would look up the bundle's name there, since there is no config.json in a bundle."""
    from peft.utils import save_and_load

    asked: list[str] = []
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda name, file: asked.append(name))
    model = models.tiny_model("llama")
    model.name_or_path = model.config._name_or_path = str(tiny / "bundle")
    wrapped = peft_model(model, Bundle.find(tiny / "bundle").basis)
    wrapped.save_pretrained(tmp_path / "asks")
    assert asked == [str(tiny / "bundle")]
    engine.keep_local(wrapped).save_pretrained(tmp_path / "asks not")
    assert len(asked) == 1


@pytest.fixture(scope="module")
def two_processes(tiny: Path, problems: dict[str, Path]) -> Path:
    """One launch for all that two processes are needed for; starting them is what takes time."""
    recipe = [str(tiny / "bundle"), "-o", str(tiny / "recipe.bin"), "--recipe", str(RECIPES[0])]
    recipe += ["--task", str(problems["gsm8k"]), "--weights", str(tiny / "weights")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [trl_worker.__file__, str(tiny), *recipe, "--dry-run", "--sweep", "6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CI": "1"}  # CI: TRL sends no telemetry
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (tiny / "recipe.out").write_text(done.stdout)
    return tiny


def test_every_process_ends_with_the_same_numbers(two_processes: Path) -> None:
    folder = two_processes
    basis = Bundle.find(folder / "bundle").basis
    for name in ("fixed", "sampled"):
        first, second = ((folder / f"{name}.{rank}").read_bytes() for rank in (0, 1))
        assert first == second
        assert np.frombuffer(first, np.float32).shape == (13,)
    manifest = json.loads((folder / "sampled.bin.json").read_text())
    assert manifest["engine"]["processes"] == 2
    shipped = MicroVector.from_bytes((folder / "sampled.bin").read_bytes(), basis)
    assert shipped.values.tobytes() == (folder / "sampled.0").read_bytes()
    assert [row["step"] for row in steps(rows_of(folder / "sampled.bin"))] == [1, 2, 3, 4]  # written once


def test_processes_that_come_apart_are_told(two_processes: Path) -> None:
    for rank in (0, 1):
        assert "2 processes ended with 2 different vectors" in (two_processes / f"apart.{rank}").read_text()


def test_two_processes_compute_what_one_does(two_processes: Path, tmp_path: Path) -> None:
    """The same global batches in one process and in two, which split a group between them.

    Compared after every step: loss, KL, gradient norm before the clip, |v|; at the end all 13 numbers.
    """
    rows: list[dict[str, Any]] = []
    trainer = trl_worker.fixed_run(two_processes, tmp_path / "v.bin", rows)
    assert trainer.args.per_device_train_batch_size == 12
    expected, found = steps(rows), steps(rows_of(two_processes / "fixed.bin"))
    assert len(found) == len(expected) == 4
    for one, two in zip(expected, found, strict=True):
        for key in ("reward", "length", "loss", "kl", "grad", "norm"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key
    assert min(abs(row["loss"]) for row in expected) > 0.01
    assert min(row["grad"] for row in expected) > 0.01
    assert expected[-1]["kl"] > 0.01
    alone = vector_of(trainer.model).values.reshape(-1)
    together = np.frombuffer((two_processes / "fixed.0").read_bytes(), np.float32)
    assert np.abs(alone).min() > 0.01
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)


def test_agrees_with_the_gradient_of_the_default_engine(tiny: Path, tmp_path: Path) -> None:
    """TRL's first gradient on given completions is the learner's, for the same loss."""
    import torch

    from tinylora_edge.train import Adapter, Group, Learner
    from tinylora_edge.train._model import load_model
    from tinylora_edge.train.grpo import normaliser

    rows: list[dict[str, Any]] = []
    trainer = trl_worker.fixed_run(tiny, tmp_path / "v.bin", rows)
    batch = next(iter(trainer.get_train_dataloader()))
    prompts = [row["prompt"] for row in batch]
    trainer.model.train()
    given = trl_worker.completions(prompts, trainer)
    task, end = trl_worker.letters_task(), trl_worker.END
    model = load_model(tiny / "weights", "fp32")
    adapter = Adapter(model, Bundle.find(tiny / "bundle").basis)
    learner = Learner(model, adapter, temperature=task.temperature)
    weights = iter(normaliser([len(c) for c in given["completion_ids"]], task.max_tokens, "dapo"))
    groups = []
    for start in range(0, len(prompts), 4):
        drawn = [np.array(c, np.int32) for c in given["completion_ids"][start : start + 4]]
        texts = [bytes(c[c < 256].astype(np.uint8)).decode() for c in drawn]
        scores = [
            task.score(Completion(t, c[-1] == end, len(c)), task.train[0])
            for t, c in zip(texts, drawn, strict=True)
        ]
        advantage = (scores - np.mean(scores)) / (np.std(scores, ddof=1) + 1e-4)  # TRL's
        groups.append(
            Group(
                np.array(given["prompt_ids"][start], np.int32),
                drawn,
                [np.zeros(len(c), np.float32) for c in drawn],
                advantage.astype(np.float32),
                np.array([next(weights) for _ in drawn], np.float32),
            )
        )
    gradient = learner.gradient(groups, Loss(importance_cap=0.0))
    learner.close()
    assert rows[1]["reward"] > 0
    assert rows[1]["loss"] == pytest.approx(gradient.loss, rel=1e-4)
    assert rows[1]["grad"] == pytest.approx(torch.linalg.norm(gradient.grad).item(), rel=1e-3)


def test_no_step_without_signal(tiny: Path, options: Options, tmp_path: Path) -> None:
    """Adam's momentum must not move v on: silent steps leave it as it is, and too many end the run."""
    calls = 0

    def fading(completion: Completion, sample: Sample) -> float:
        nonlocal calls
        calls += 1
        return trl_worker.letters(completion, sample) if calls <= 8 + 24 else 0.0

    task = replace(trl_worker.letters_task(), reward=fading)
    settings = replace(options.settings, steps=20, silence=3, validate_every=100)
    rows: list[dict[str, Any]] = []
    outcome = train_trl(
        tiny / "bundle",
        task,
        tmp_path / "v.bin",
        options=replace(options, settings=settings),
        report=rows.append,
    )
    result = outcome.result
    assert (result.stopped, result.steps) == ("silence", 5)
    # no answer got a reward at the end, so the start is the best
    assert (result.best_step, result.best_score, result.vector.norm) == (0, result.start_score, 0)
    assert rows[-1]["validation"] == 0 < result.start_score
    norms = [row["norm"] for row in steps(rows)]
    assert 0 < norms[0] != norms[1]
    assert norms[1] == norms[2] == norms[3] == norms[4]
    assert [row["signal"] for row in steps(rows)][2:] == [0, 0, 0]

    silent = replace(task, reward=lambda completion, sample: 0.5)
    with pytest.raises(TrainError, match="gives no signal: in 3 steps"):
        train_trl(tiny / "bundle", silent, tmp_path / "w.bin", options=replace(options, settings=settings))
    assert not (tmp_path / "w.bin").exists()


@pytest.mark.parametrize("kl", [0.0, 0.05])  # with KL, PEFT saves a second adapter: the reference
def test_resumes_to_the_same_numbers(tiny: Path, options: Options, tmp_path: Path, kl: float) -> None:
    settings = replace(options.settings, steps=6, checkpoint_every=2, validate_every=3)
    chosen = replace(options, settings=settings, loss=Loss(kl=kl))
    task = trl_worker.letters_task()
    rows: list[dict[str, Any]] = []
    whole = train_trl(tiny / "bundle", task, tmp_path / "a.bin", options=chosen, report=rows.append)

    class Stopped(Exception):  # noqa: N818 - not an error
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train_trl(tiny / "bundle", task, tmp_path / "b.bin", options=chosen, report=stop)
    with pytest.raises(TrainError, match="go on with --resume"):
        train_trl(tiny / "bundle", task, tmp_path / "b.bin", options=chosen)
    resumed = train_trl(tiny / "bundle", task, tmp_path / "b.bin", options=chosen, resume=True)
    assert resumed.result == whole.result
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    assert steps(rows_of(tmp_path / "b.bin")) == steps(rows)
    assert whole.result.best_step > 0 or whole.result.vector.norm == 0


def test_a_reward_sees_what_the_model_said(tiny: Path) -> None:
    seen = []

    def note(completion: Completion, sample: Sample) -> float:
        seen.append((completion, sample))
        return float(completion.tokens)

    task = replace(trl_worker.letters_task(), reward=note)
    tokenizer = load_tokenizer(tiny / "weights")
    score = reward_function(task, task.train, tokenizer, end_ids(models.tiny_model("llama"), tokenizer))
    assert score(completion_ids=[[72, 105, 257], [32, 72, 258]], index=[3, 5], prompts=[]) == [3, 3]
    assert seen == [
        (Completion("Hi", True, 3), task.train[3]),
        (Completion(" H", False, 3), task.train[5]),
    ]


def test_a_reward_that_fails_is_told_with_its_sample(tiny: Path, options: Options, tmp_path: Path) -> None:
    def broken(completion: Completion, sample: Sample) -> float:
        return 1 / len([c for c in completion.text if c == "\0"])

    task = replace(trl_worker.letters_task(), reward=broken)
    with pytest.raises(TrainError, match=r"train sample \d+ .*ZeroDivisionError"):
        train_trl(tiny / "bundle", task, tmp_path / "v.bin", options=options)


@pytest.mark.parametrize(
    ("change", "grpo", "message"),
    [
        ({"method": "sft"}, {}, "GRPO, not sft"),
        ({"settings": {"lr": None}}, {}, "derives no step size"),
        ({"settings": {"validation": 0}}, {}, "at least 1"),
        ({"settings": {"validation": 46}}, {}, "48 training prompts, but 46"),
        ({}, {"per_device_train_batch_size": 5}, "12 completions a step .3 prompts x 4. do not divide"),
        ({}, {"no_such_field": 1}, "no_such_field"),
        ({}, {"num_generations": 1}, "GRPO requires at least 2|divisible"),
        ({}, {"output_dir": "elsewhere"}, "output_dir cannot be set"),
        ({}, {"use_transformers_continuous_batching": True}, "bfloat16"),
    ],
)
def test_refuses_settings_that_cannot_work(
    tiny: Path,
    options: Options,
    tmp_path: Path,
    change: dict[str, Any],
    grpo: dict[str, Any],
    message: str,
) -> None:
    if "settings" in change:
        change = {"settings": replace(options.settings, **change["settings"])}
    with pytest.raises(TrainError, match=message):
        train_trl(
            tiny / "bundle",
            trl_worker.letters_task(),
            tmp_path / "v.bin",
            options=replace(options, **change),
            grpo=grpo,
        )
    assert list(tmp_path.iterdir()) == []


def test_refuses_prompts_that_the_device_sees_otherwise(tiny: Path, tmp_path: Path) -> None:
    bundle, tokenizer = tiny / "bundle", load_tokenizer(tiny / "weights")
    task = trl_worker.letters_task()
    check_prompts(tokenizer, task, task.train, room=20, bundle=bundle)
    with pytest.raises(TrainError, match=r"has 9 tokens, but the model's context leaves room for 8"):
        check_prompts(tokenizer, task, task.train, room=8)
    texts = [Sample("plain text"), *task.train]
    with pytest.raises(TrainError, match="mixes text and chat prompts"):
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
    task = Task("t", prompts, [], trl_worker.letters)
    tokenizer = load_tokenizer(Bundle.find(smollm2_bundle).base)
    check_prompts(tokenizer, task, prompts, room=100, bundle=smollm2_bundle)


# Recipes


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task files as the recipes name them."""
    folder = tmp_path_factory.mktemp("problems")
    gsm8k = [
        {"question": f"Ann has {n} pens and buys {n + 2}. How many?", "answer": f"Sum.\n#### {2 * n + 2}"}
        for n in range(20)
    ]
    maths = [
        {"problem": f"What is ${n}/2$?", "solution": rf"It is $\boxed{{\frac{{{n}}}{{2}}}}$."}
        for n in range(20)
    ]
    for name, rows in (("gsm8k", gsm8k), ("train", maths[:14]), ("test", maths[12:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(ROOT / "recipes" / "math_boxed.py"), str(folder / "train.jsonl")]
    command += ["--test", str(folder / "test.jsonl"), "-o", str(folder / "math.jsonl")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "12 to train on, 8 held out" in made.stderr
    return {"gsm8k": Path(f"gsm8k:{folder / 'gsm8k.jsonl'}"), "math": folder / "math.jsonl"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_dry(path: Path, tiny: Path, problems: dict[str, Path], tmp_path: Path) -> None:
    """Through the command line, two steps, on a tiny model: only sizes and the reward's scale are cut."""
    output = tmp_path / "v.bin"
    task = str(problems[path.stem.partition("-")[0]])
    arguments = [str(tiny / "bundle"), "-o", str(output), "--recipe", str(path), "--task", task]
    arguments += ["--weights", str(tiny / "weights"), "--dry-run"]
    assert main(arguments) == 0
    manifest = json.loads(output.with_name("v.bin.json").read_text())
    MicroVector.from_bytes(output.read_bytes(), Bundle.find(tiny / "bundle").basis)
    assert [row["step"] for row in steps(manifest["curve"])] == [1, 2]
    recipe = read_recipe(path)
    fields = manifest["engine"]["grpo"]
    assert fields["num_generations"] == recipe.options.samples
    assert fields["beta"] == recipe.options.loss.kl
    assert fields["gradient_checkpointing"] is True


def test_a_recipe_runs_dry_in_two_processes(two_processes: Path) -> None:
    printed = [json.loads(line) for line in (two_processes / "recipe.out").read_text().splitlines()]
    manifest = json.loads((two_processes / "recipe.bin.json").read_text())
    assert printed == manifest["curve"]
    assert [row["step"] for row in steps(printed)] == [1, 2]
    assert manifest["engine"]["processes"] == 2
    assert manifest["options"]["settings"]["lr"] == 2e-4


def test_recipes_say_what_the_paper_does(problems: dict[str, Path]) -> None:
    """Of arXiv 2602.04118: the settings of its GSM8K runs, and those of MATH."""
    sizes = (1e-7, 5e-7, 1e-6, 5e-6, 1e-5, 1e-4, 2e-4)
    paper = {
        "gsm8k-qwen2.5-3b": (4, 64, 0.0, 4096),
        "gsm8k-qwen2.5-7b": (4, 64, 0.0, 4096),
        "math-qwen2.5-7b": (8, 256, 0.001, 3072),
    }
    assert [path.stem for path in RECIPES] == sorted(paper)
    for path in RECIPES:
        samples, batch, kl, limit = paper[path.stem]
        recipe = read_recipe(path, [f"task={problems[path.stem.partition('-')[0]]}"])
        assert recipe.step_sizes == sizes
        task = recipe.load()
        longer = replace(task, train=list(task.train) * 100)
        options = replace(recipe.options, settings=replace(recipe.options.settings, lr=sizes[0]))
        fields = grpo_fields(longer, options, recipe.grpo, processes=8)
        per_step = fields["per_device_train_batch_size"] * 8 * fields["gradient_accumulation_steps"]
        assert per_step == samples * batch
        assert (fields["num_generations"], fields["beta"]) == (samples, kl)
        assert fields["max_completion_length"] == limit
        assert (fields["num_train_epochs"], fields["max_steps"]) == (3, -1)
        assert fields["temperature"] == 1.0
        engine.GRPOConfig(**(fields | {"use_cpu": True, "bf16": False, "use_vllm": True} | dict(recipe.vllm)))


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        (r"So \boxed{\dfrac{3}{4}}.", r"\frac{3}{4}", 1.0),
        (r"First \boxed{1}, no: \boxed{2}", "2", 1.0),
        (r"First \boxed{2}, no: \boxed{1}", "2", 0.0),
        (r"\boxed{\left( 1, \, 2 \right)}", "(1,2)", 1.0),
        (r"\boxed{1{,}000} \boxed{1,000}", "1000", 1.0),
        (r"\boxed{90^\circ}", "90", 1.0),
        (r"\boxed{\text{Tuesday}}", "Tuesday", 1.0),
        (r"\boxed{.5}", "0.5", 1.0),
        (r"\boxed{\frac12}", r"\frac{1}{2}", 1.0),
        (r"\boxed{}", "", 0.0),
        (r"\boxed{\frac{3}{4}", r"\frac{3}{4}", 0.0),  # cut
        ("The answer is 2", "2", 0.0),
    ],
)
def test_the_reward_for_math(answer: str, reference: str, score: float) -> None:
    task = read_recipe(ROOT / "recipes" / "math-qwen2.5-7b.toml")
    sys.path.insert(0, str(task.folder))
    try:
        from math_boxed import boxed
    finally:
        sys.path.pop(0)
    assert boxed(Completion(answer, True, 9), Sample("x", reference)) == score


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["options.setings.prompts=8"], "unknown setting 'options.setings'"),
        (["options.settings.prompt=8"], "unknown setting 'options.settings.prompt'"),
        (["speed=8"], "unknown setting 'speed'"),
        (["options.settings.prompts"], "expected KEY=VALUE"),
        (["options=1"], "options is 1, expected a table"),
        (["task.name=x"], "task is no table"),
        (["options.method=other"], "unknown method 'other'"),
    ],
)
def test_says_what_is_wrong_with_a_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        read_recipe(RECIPES[0], changes)


def test_a_command_that_cannot_run_says_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("task = ")
    recipe = str(RECIPES[0])
    cases: list[tuple[list[str], str]] = [
        ([], "no task: name one with --task"),
        (["--recipe", recipe], "choose --sweep 0 to 6"),
        (["--recipe", recipe, "--sweep", "7"], "--sweep 7: the recipe has step sizes 0 to 6"),
        (["--recipe", str(tmp_path / "none.toml")], "No such file"),
        (["--recipe", str(tmp_path / "bad.toml")], "not TOML"),
        (["--task", "gsm8k:none.jsonl", "--lr", "1e-5"], "none.jsonl"),
    ]
    for arguments, message in cases:
        assert main([str(tiny / "bundle"), "-o", str(tmp_path / "v.bin"), *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_changes_go_before_the_recipe() -> None:
    changes = ["options.settings.prompts=16", "grpo.beta=0.5", "task=gsm8k:x.jsonl", "reward=ends_itself"]
    recipe = read_recipe(RECIPES[1], changes)
    assert recipe.options.settings.prompts == 16
    assert recipe.grpo["beta"] == 0.5
    assert (recipe.task, recipe.arguments["reward"]) == ("gsm8k:x.jsonl", "ends_itself")
