"""Sampled batches: what a step makes of completions, and of those whose vector is too large."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tinylora_edge import Bundle, MicroVector
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Adapter, Options, TrainSettings, run, train
from tinylora_edge.train.batches import Sampled
from tinylora_edge.train.grpo import Loss
from tinylora_edge.train.model import default_dtype, load_model
from tinylora_edge.train.rollouts import HFRollouts, Rollout

SAMPLES = [Sample("a"), Sample("b")]
V = np.ones((2, 1), np.float32)


def length(completion: Completion, sample: Sample) -> float:
    assert not completion.exploded, "no reward judges it"
    return float(completion.tokens) - 5


class Given:
    """Rollouts that are given: a number of tokens each, None where the vector explodes at once."""

    def __init__(self, lengths: list[list[int | None]]) -> None:
        self.lengths = lengths

    def draw(
        self, vector: MicroVector | None, prompts: Sequence[NDArray[np.int32]], **_: Any
    ) -> list[list[Rollout]]:
        return [
            [
                Rollout(np.arange(n or 0, dtype=np.int32), np.zeros(n or 0, np.float32), bool(n), n is None)
                for n in group
            ]
            for group in self.lengths
        ]


def sampled(given: Given) -> Sampled:
    task = Task("task", SAMPLES, [], length, max_tokens=8)
    return Sampled(
        task,
        given,
        encode=lambda sample: np.array([1], np.int32),
        decode=lambda tokens: "x" * len(tokens),
        each=3,
        loss=Loss(),
    )


def test_what_explodes_gets_the_lowest_reward_and_no_gradient() -> None:
    given = Given([[4, None, 2], [None, None, None]])
    batches = sampled(given)
    groups, metrics = batches.collect(V, SAMPLES, (0,))
    assert metrics["exploded"] == 4
    assert metrics["reward"] == np.mean([-1, -3, -3, -3, -3, -3])
    (group,) = groups
    assert [len(tokens) for tokens in group.completions] == [4, 2]
    assert group.advantage[0] > 0 > group.advantage[1]
    given.lengths = [[None] * 3] * 2
    groups, metrics = batches.collect(V, SAMPLES, (0,))
    assert (groups, metrics["signal"], metrics["reward"]) == ([], 0.0, -3.0), "the lowest of the run so far"


def test_nothing_is_said_where_nothing_explodes() -> None:
    _, metrics = sampled(Given([[4, 3, 2]] * 2)).collect(V, SAMPLES, (0,))
    assert "exploded" not in metrics


PROMPTS = [np.arange(5, 25, dtype=np.int32), np.arange(40, 55, dtype=np.int32)]
DRAWING: dict[str, Any] = {"samples": 4, "max_tokens": 12, "temperature": 0.8, "seed": (1,)}


@pytest.fixture
def hf(tiny_bundle: Path) -> Iterator[Callable[..., HFRollouts]]:
    """Make rollouts by transformers on weights, with tokens that end."""
    with ExitStack() as stack:

        def make(weights: Path, end: Sequence[int] = (257,)) -> HFRollouts:
            model = load_model(weights, "fp32")
            adapter = stack.enter_context(Adapter(model, Bundle.find(tiny_bundle).basis))
            return HFRollouts(model, adapter, end, sequences=8)

        yield make


def test_transformers_draws_from_the_model_alone(
    hf: Callable[..., HFRollouts], tiny_weights: Path, tmp_path: Path
) -> None:
    """Whatever the weights' own settings of generation ask for: the learner knows none of it."""
    own = {"repetition_penalty": 5.0, "min_p": 0.2, "no_repeat_ngram_size": 1, "suppress_tokens": [60, 96]}
    directed = shutil.copytree(tiny_weights, tmp_path / "directed")
    path = directed / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    plain, rollouts = hf(tiny_weights), hf(directed)
    for temperature, samples in ((0.8, 4), (0.0, 1)):
        drawing = DRAWING | {"temperature": temperature, "samples": samples}
        expected, found = (each.draw(None, PROMPTS, **drawing) for each in (plain, rollouts))
        assert [[r.tokens.tolist() for r in g] for g in found] == [
            [r.tokens.tolist() for r in g] for g in expected
        ]
        if temperature == 0:
            assert {60, 96} & {int(token) for (r,) in found for token in r.tokens}
    assert rollouts._model.generation_config.repetition_penalty == 5.0, "it is as it was"


def test_transformers_ends_at_every_token_that_ends(
    hf: Callable[..., HFRollouts], tiny_weights: Path
) -> None:
    ends = [257, *range(0, 256, 4)]
    drawn = [r for group in hf(tiny_weights, ends).draw(None, PROMPTS, **DRAWING) for r in group]
    assert any(r.ended and r.tokens[-1] != 257 for r in drawn)
    for rollout in drawn:
        assert not set(rollout.tokens[:-1].tolist()) & set(ends)
        assert rollout.ended == (rollout.tokens[-1] in ends)
        assert rollout.ended or len(rollout.tokens) == 12


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_transformers_says_what_exploded(
    temperature: float, hf: Callable[..., HFRollouts], tiny_weights: Path
) -> None:
    rollouts = hf(tiny_weights)
    huge = MicroVector(np.full((13, 1), 3e38, np.float32))
    drawing = DRAWING | {"temperature": temperature, "samples": 1}
    for (rollout,) in rollouts.draw(huge, PROMPTS, **drawing):
        assert (len(rollout.tokens), len(rollout.logprobs)) == (0, 0)
        assert (rollout.ended, rollout.exploded) == (False, True)


def test_what_explodes_later_keeps_what_was_drawn_before_it(
    hf: Callable[..., HFRollouts], tiny_weights: Path
) -> None:
    """Logits that turn to NaN in one row, from its fourth token on; the other row is as ever."""
    rollouts = hf(tiny_weights)
    drawing = DRAWING | {"samples": 1}
    ((first,), (second,)) = rollouts.draw(None, PROMPTS, **drawing)
    passes = [0]

    def spoil(module: torch.nn.Module, given: Any, logits: torch.Tensor) -> None:
        passes[0] += 1
        if passes[0] > 3:
            logits[0] = torch.nan

    with torch.no_grad():
        hook = rollouts._model.get_output_embeddings().register_forward_hook(spoil)
    ((cut,), (whole,)) = rollouts.draw(None, PROMPTS, **drawing)
    hook.remove()
    assert (cut.tokens.tolist(), cut.ended, cut.exploded) == (first.tokens[:3].tolist(), False, True)
    np.testing.assert_array_equal(cut.logprobs, first.logprobs[:3])
    assert (len(whole.tokens), whole.exploded) == (len(second.tokens), False)
    assert np.isfinite(whole.logprobs).all()


def test_a_run_with_transformers_ends_where_the_device_does(
    tiny_weights: Path, options: Options, letters_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a turn, too, where the model's file names such a token."""
    model = models.tiny_model("llama")
    gguf = models.write_gguf(model, tmp_path / "tiny.gguf", metadata={"tokenizer.ggml.eot_token_id": 258})
    bundle = export_gguf(gguf, tmp_path / "bundle", settings=ExportSettings(groups=13)).output
    seen: list[list[int]] = []

    class Seen(HFRollouts):
        def __init__(self, model: Any, adapter: Any, end: Sequence[int], **more: Any) -> None:
            seen.append(list(end))
            super().__init__(model, adapter, end, **more)

    monkeypatch.setattr(run, "HFRollouts", Seen)
    settings = TrainSettings(steps=1, prompts=2, validation=2)
    chosen = replace(options, method="sft", rollouts="hf", settings=settings, evaluate=False)
    train(bundle, letters_task, tmp_path / "v", options=chosen)
    assert seen == [[257, 258]]


def test_a_processor_without_onednn_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of PyTorch for Apple Silicon have neither it nor its operators."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_dtype() == "fp32"
