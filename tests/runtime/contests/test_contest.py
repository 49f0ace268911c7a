"""Contests: what is measured is what single requests answer; what is refused is refused before any work."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import BaseMismatchError, MicroVector, TrainError, VectorError, runtime
from tinylora_edge.runtime import Contest, Contestant, TinyLoraLlama, contest
from tinylora_edge.runtime.evaluation import Evaluation, bootstrap_interval
from tinylora_edge.runtime.llama.prompts import encode
from tinylora_edge.tasks import Completion, Preamble, Sample, Task
from tinylora_edge.tasks.candidates import draw_examples

ONE = {"n_threads": 1, "sequences": 8}


@pytest.fixture
def field(llm: TinyLoraLlama, task: Task, lora: Path) -> list[Contestant]:
    vector = Contestant(name="vector", vector=MicroVector.random(llm.basis, 0.4, seed=1), making_s=2.0)
    shown = Contestant(
        name="2 examples", preamble=Preamble("Be brief.", draw_examples(task, 2)), making_s=1.0
    )
    stock = Contestant(name="LoRA", lora=lora)
    return [vector, *(each for other in (shown, stock) for each in (other, vector.beside(other)))]


def test_answers_are_those_of_single_requests(
    llm: TinyLoraLlama, chat_bundle: Path, task: Task, field: list[Contestant]
) -> None:
    before = MicroVector.random(llm.basis, 0.2, seed=5)
    events: list[dict[str, object]] = []
    with llm.using(before):
        found = contest(llm, task, field, requests=1, report=events.append, **ONE)
        assert llm.vector == before
    assert list(dict.fromkeys(event["what"] for event in events)) == [
        "base",
        *(each.name for each in field),
        "times",
    ]
    total = len(task.held_out) * (1 + len(field))
    counts = [(event["done"], event["all"]) for event in events]
    assert list(dict.fromkeys(counts)) == [(done, total) for done in range(total + 1)], "a prompt at a time"
    for standing in found.standings:
        each = standing.contestant
        options = {"lora_path": None if each.lora is None else str(each.lora)}
        with runtime.load(
            chat_bundle, each.vector, engine="llama", n_ctx=200, n_threads=1, **options
        ) as alone:
            for number in (0, 7):
                asked = each.preamble.before(task.held_out[number])
                tokens = encode(alone, asked).tolist()
                answer = list(itertools.islice(alone.generate(tokens, temp=0.0), task.max_tokens))
                answer = (
                    answer[: answer.index(alone.token_eos()) + 1] if alone.token_eos() in answer else answer
                )
                text = alone.detokenize(answer).decode("utf-8", errors="replace")
                assert standing.evaluation.answers[number] == text, each.name
    answers = {tuple(standing.evaluation.answers) for standing in found.standings}
    assert len(answers) == 6, "each of them does something"


def test_costs_and_duels(llm: TinyLoraLlama, task: Task, field: list[Contestant], lora: Path) -> None:
    found = contest(llm, task, field, requests=2, **ONE)
    costs = {standing.contestant.name: standing.cost for standing in found.standings}
    size = lora.stat().st_size
    frame = len(MicroVector.zeros(llm.basis).to_bytes(llm.basis))
    assert {name: cost.sent for name, cost in costs.items()} == {
        "base": 0,
        "vector": frame,
        "2 examples": 0,
        "vector + 2 examples": frame,
        "LoRA": size,
        "vector + LoRA": frame + size,
    }
    assert costs["base"].prompt_tokens == costs["LoRA"].prompt_tokens == len("u:p80\na:")
    extra = len("s:Be brief.\n") + sum(len(f"u:{e.text}\na:{e.answer}\n") for e in field[1].preamble.examples)
    assert costs["2 examples"].prompt_tokens == costs["base"].prompt_tokens + extra
    assert costs["2 examples"].shipped == field[1].preamble.size
    assert (costs["vector + 2 examples"].making_s, costs["vector + LoRA"].making_s) == (3.0, None)
    for cost in costs.values():
        assert cost.first_token_s is not None
        assert cost.next_first_token_s is not None
        assert min(cost.first_token_s, cost.next_first_token_s) > 0

    record = json.loads(json.dumps(found.record()))
    pairs = {(duel["first"], duel["second"]) for duel in record["duels"]}
    assert pairs == {
        *(("base", name) for name in costs if name != "base"),
        *((name, "vector") for name in ("2 examples", "LoRA")),
        *((name, f"vector + {name}") for name in ("2 examples", "LoRA")),
    }
    one = found.duel("LoRA", "vector")
    gaps = found["vector"].evaluation.scores - found["LoRA"].evaluation.scores
    assert one.comparison.difference == gaps.mean()
    assert one.interval is None
    assert "p" in one.record()


def test_rewards_between_0_and_1_have_an_interval() -> None:
    rng = np.random.default_rng(2)
    first = Evaluation(rng.random(400), [""] * 400)
    second = Evaluation(first.scores + rng.normal(0.1, 0.3, 400), [""] * 400)
    low, high = bootstrap_interval(first, second)
    assert (low, high) == bootstrap_interval(first, second)
    gaps = second.scores - first.scores
    error = gaps.std(ddof=1) / 20
    assert low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.2 * error)
    duel = runtime.Duel.between(("a", first), ("b", second))
    assert duel.record()["interval_95"] == [low, high]
    assert "p" not in duel.record()


def test_what_is_refused(llm: TinyLoraLlama, task: Task, lora: Path, tmp_path: Path) -> None:
    def refused(*contestants: Contestant) -> Contest:
        def fail(completion: Completion, sample: Sample) -> float:
            raise AssertionError("something was measured")

        return contest(llm, replace(task, reward=fail), contestants, **ONE)

    with pytest.raises(TrainError, match="two contestants are called 'base'"):
        refused(Contestant(name="base"))
    long = Preamble(None, tuple(Sample(f"p{i}" * 10, "a" * 40) for i in range(8)))
    with pytest.raises(
        TrainError, match=r"behind 8 worked examples has \d+ tokens, which with 6 .* 512: take few"
    ):
        refused(Contestant(name="8 examples", preamble=long))
    with pytest.raises(TrainError, match="behind the system prompt has 613 tokens"):
        refused(Contestant(name="x", preamble=Preamble("y" * 602)))
    other = tmp_path / "other.gguf"
    other.write_bytes(lora.read_bytes().replace(b"blk.0.attn_q", b"blk.9.attn_q"))
    with pytest.raises(BaseMismatchError, match=r"adapts blk\.9\.attn_q\.weight, and base\.gguf has no such"):
        refused(Contestant(name="LoRA", lora=other))


def test_a_model_without_a_template_takes_no_preamble(tiny_bundles: dict[str, Path], task: Task) -> None:
    with runtime.load(tiny_bundles["tiled"], engine="llama", n_ctx=64, n_threads=1) as plain:
        with pytest.raises(VectorError, match="the model has no chat template"):
            contest(plain, task, [Contestant(name="x", preamble=Preamble("Be brief."))], requests=0, **ONE)
        found = contest(plain, task, [], requests=0, **ONE)
    assert found["base"].cost.first_token_s is None
