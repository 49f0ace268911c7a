"""Tuning on tiny models of both engines: it learns, is paused and resumed, and refuses what cannot work."""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_bundles
import pytest
import support
from planted import PROMPTS, QUICK, Planted, favoured

from tinylora_edge import BasisMismatchError, MicroVector, TrainError, VectorError, runtime
from tinylora_edge.runtime import Budget, NotImprovedWarning, RewardLearner, TinyLoraLlama, TuneSettings
from tinylora_edge.runtime.learning import learner
from tinylora_edge.runtime.learning.search import Search
from tinylora_edge.runtime.learning.state import beginning
from tinylora_edge.tasks import Completion, Sample, rewards


@pytest.fixture
def llm(llama: TinyLoraLlama) -> TinyLoraLlama:
    return llama


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if "reward" in row]


class TestLearning:
    @pytest.mark.parametrize("seed", range(3))
    def test_finds_a_planted_vector_and_makes_it_active(self, seed: int) -> None:
        planted = Planted(seed)
        rows: list[dict[str, Any]] = []
        options: dict[str, Any] = {**QUICK, "basis": planted.bases.basis(numbers=5), "report": rows.append}
        found = runtime.tune(planted, PROMPTS, planted.reward, budget="12ktokens", **options)
        assert planted.vector == found
        assert np.linalg.norm(found.values - planted.target) < 0.7 * np.linalg.norm(planted.target)
        start, *steps, end = rows
        assert (start["event"], end["event"]) == ("start", "end")
        assert end["improved"]
        assert end["score"] > end["start_score"] == start["check"]
        assert [row["step"] for row in steps if "reward" in row] == list(range(1, end["steps"] + 1))
        assert end["tokens"] <= 12_000 * 1.1, "the end is foreseen, from what answers took so far"

    def test_learns_from_the_shaped_reward_and_keeps_by_the_reward(self, llm: TinyLoraLlama) -> None:
        seen: dict[str, set[str]] = {"reward": set(), "shaped": set()}

        def reward(completion: Completion, sample: Sample) -> float:
            seen["reward"].add(sample.text)
            return 0.5  # whatever was learned, it is not kept

        def shaped(completion: Completion, sample: Sample) -> float:
            seen["shaped"].add(sample.text)
            return favoured(completion, sample)

        tuning = RewardLearner(llm, PROMPTS, reward, shaped=shaped, **QUICK)
        found = tuning.run("4ktokens")
        assert tuning._search.mean.any()
        assert not found.improved
        assert len(seen["reward"]) == found.held_back
        assert not seen["reward"] & seen["shaped"]

    def test_as_many_numbers_as_are_asked_for(self, llm: TinyLoraLlama) -> None:
        llm.swap(MicroVector.random(llm.bases.basis(numbers=5), 0.1, seed=5))
        for basis in (llm.bases.basis(numbers=7), llm.bases.basis(rank=1)):
            tuning = RewardLearner(llm, PROMPTS, favoured, basis=basis, **QUICK)
            assert tuning.state.start == [0.0] * basis.size, "the model's own vector is of another basis"
            assert tuning.run("2ktokens").vector.basis == basis.digest
            assert len(tuning.state.search["start"]) == basis.size

    def test_a_start_of_few_bits_is_not_what_candidates_are_rounded_to(self, llm: TinyLoraLlama) -> None:
        start = MicroVector.random(llm.bases.basis(rank=2), 0.5, seed=5, dtype="q2")
        tuning = RewardLearner(llm, PROMPTS, favoured, start=start, **QUICK)
        near = start.values + np.float32(1e-3)
        assert np.array_equal(tuning._vector(near).values, near)
        assert tuning.run("2ktokens").vector.basis == start.basis

    def test_what_lies_beneath_stays(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        shared = MicroVector.random(llm.bases.basis(rank=8), 2.0, seed=5)
        llm.swap([shared, MicroVector.zeros(llm.bases.basis(numbers=5))])
        tuning = RewardLearner(llm, PROMPTS, favoured, path=tmp_path / "state", **QUICK)
        drawn: list[Any] = []
        own = llm.own
        llm.own = lambda vector: drawn.append(vector) or own(vector)  # type: ignore[func-returns-value, method-assign]
        found = tuning.run("3ktokens").vector
        assert len(drawn) > 4
        assert {each.under for each in (*drawn, found)} == {shared}
        other = replace(found, under=None)
        with pytest.raises(TrainError, match="its under is"):
            RewardLearner(llm, PROMPTS, favoured, start=other, path=tmp_path / "state", **QUICK)

    def test_in_onnx_too(self) -> None:
        bundle = onnx_bundles.without_template()
        with runtime.load(bundle, engine="onnx", n_ctx=64, n_threads=1) as onnx:
            rows: list[dict[str, Any]] = []
            found = runtime.tune(onnx, PROMPTS, favoured, budget="8ktokens", report=rows.append, **QUICK)
            assert rows[-1]["steps"] >= 3
            assert rows[-1]["improved"] == bool(found.values.any()) == (onnx.vector is not None)

    def test_the_start_is_returned_and_said_where_nothing_is_better(self, llm: TinyLoraLlama) -> None:
        own = llm.swap(MicroVector.random(llm.bases.basis(numbers=5), 0.1, seed=5))
        base = {}

        def best_is_the_first(completion: Completion, sample: Sample) -> float:
            """1 for what the start answered, 0 for anything else."""
            return float(base.setdefault(sample.text, completion.text) == completion.text)

        # The start answers the prompts held back first; those that are learned on teach nothing.
        with pytest.warns(NotImprovedWarning):
            found = runtime.tune(llm, PROMPTS, best_is_the_first, budget="5ktokens", **QUICK)
        assert found is own
        assert llm.vector is own

    def test_prompts_held_back_are_not_learned_on(self, llm: TinyLoraLlama) -> None:
        samples = [Sample(prompt, answer=answer) for prompt in PROMPTS for answer in ("a", "b")]
        learner = RewardLearner(llm, samples, favoured, **QUICK)
        learn, check = ({samples[i].prompt for i in part} for part in (learner._train, learner._check))
        assert len(learn) == len(set(PROMPTS)) - len(check)

    def test_stops_where_there_is_no_signal(self, llm: TinyLoraLlama) -> None:
        found = RewardLearner(llm, PROMPTS, lambda completion, sample: 0.5, **QUICK).run("1000ktokens")
        assert (found.stopped, found.improved, found.steps) == ("silence", False, 10)

    def test_what_the_search_and_the_batch_take_is_of_the_budget(self, llm, monkeypatch):
        late, ask, batch, clock = [0.0], Search.ask, TinyLoraLlama.batch, learner.time.monotonic

        def slow(call: Any) -> Any:
            return lambda *given, **how: late.append(late.pop() + 1000) or call(*given, **how)

        monkeypatch.setattr(learner, "time", SimpleNamespace(monotonic=lambda: clock() + late[0]))
        monkeypatch.setattr(Search, "ask", slow(ask))
        found = RewardLearner(llm, PROMPTS, favoured, **QUICK).run(Budget(seconds=1500, tokens=20_000))
        assert (found.steps, found.stopped) == (1, "budget")
        monkeypatch.setattr(TinyLoraLlama, "batch", slow(batch))
        with pytest.raises(TrainError, match=r"before and after it 1\d\d\d s"):
            RewardLearner(llm, PROMPTS, favoured, **QUICK).run(Budget(seconds=900, tokens=20_000))

    def test_stops_where_nothing_gets_better(self, llm: TinyLoraLlama) -> None:
        settings = TuneSettings(prompts=2, held_back=4, check_every=1, population=4)

        def noise(completion: Completion, sample: Sample) -> float:
            return zlib.crc32((completion.text + sample.text).encode()) / 2**32

        found = RewardLearner(llm, PROMPTS, noise, **{**QUICK, "settings": settings}).run("1000ktokens")
        assert found.stopped == "patience"


class TestTexts:
    TEXTS = tuple(Sample("", f"on my way, {n} min", raw=True) for n in range(100, 140))

    @pytest.mark.usefixtures("tuning_gains")
    def test_a_users_own_texts_are_learned_on_what_lies_beneath(self, llm, monkeypatch):
        rooms, batch = list[int](), llm.batch
        monkeypatch.setattr(llm, "batch", lambda *a, **k: rooms.append(k["sequences"]) or batch(*a, **k))
        shared = MicroVector.random(llm.bases.basis(rank=8), 2.0, seed=5)
        rows: list[dict[str, Any]] = []
        options: dict[str, Any] = {"under": shared, "report": rows.append, "n_threads": 1}
        found = runtime.tune(llm, self.TEXTS, rewards.text, budget="12ktokens", **options)
        assert found == llm.vector
        assert found.values.any()
        assert rooms == [8], "more take memory, and no less time"
        assert (found.under, rows[-1]["improved"], rows[-1]["held_back"]) == (shared, True, 8)

    def test_what_is_told_are_nats_a_token(self, llm: TinyLoraLlama, monkeypatch: pytest.MonkeyPatch) -> None:
        """The user of those held back; the search, of what each candidate makes of a step's texts."""
        told: list[Any] = []
        judge = RewardLearner._judge

        def judged(self: Any, vectors: Any, numbers: Any, *, checking: bool = False) -> Any:
            found = judge(self, vectors, numbers, checking=checking)
            told.append((vectors, numbers, found))
            return found

        def nats(vectors: Any, numbers: Any) -> Any:
            each = [texts[n] for n in numbers]
            with llm.batch(each, 40, n_threads=1) as batch:
                answers = [[llm.encode_answer(sample)] for sample in each]
                scores = batch.score_each(vectors, batch.encode(each), answers)
            return -np.array([[row.sum() for (row,) in of] for of in scores])

        monkeypatch.setattr(RewardLearner, "_judge", judged)
        texts = [Sample("", f"{n}" + "yes" * (1 + n % 9), raw=True) for n in range(600)]
        tuning = RewardLearner(llm, texts, rewards.text, n_threads=1)
        found = tuning.run("9ktokens")
        held = sum(len(llm.encode_answer(texts[n])) for n in tuning._check)
        assert (found.held_back, held) == (48, sum(len(texts[n].text) + 1 for n in tuning._check))
        assert found.start_score == pytest.approx(-nats([None], tuning._check).sum() / held, rel=1e-4)
        vectors, numbers, rewarded = told[1]
        assert rewarded.shape == (8, 8)
        np.testing.assert_allclose(rewarded, -nats(vectors, numbers) / (held / 48), rtol=1e-4)

    def test_answers_are_what_is_learned(self, llm: TinyLoraLlama) -> None:
        with pytest.raises(TrainError, match="a prompt has no answer"):
            RewardLearner(llm, PROMPTS, rewards.text, **QUICK)


class TestSittings:
    def test_same_seed_same_vector(self, llm: TinyLoraLlama) -> None:
        found = []
        for seed in (1, 1, 2):
            tuning = RewardLearner(llm, PROMPTS, favoured, seed=seed, **QUICK)
            found.append((tuning.run("3ktokens").vector, tuning.state.search))
        assert found[0] == found[1]
        assert found[0][1] != found[2][1]

    def test_pausing_changes_nothing(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        whole: list[dict[str, Any]] = []
        once = RewardLearner(llm, PROMPTS, favoured, report=whole.append, **QUICK)
        once.run(Budget(tokens=3500))
        steps = len(without_times(whole))
        assert steps >= 4  # with a check among them
        cut: list[dict[str, Any]] = []
        tunings: list[RewardLearner] = []

        def stop_after_a_step(figures: dict[str, Any]) -> None:
            cut.append(figures)
            if "reward" in figures:
                tunings[-1].stop()

        options: dict[str, Any] = {**QUICK, "report": stop_after_a_step, "path": tmp_path / "s"}
        for _ in range(steps):
            tunings.append(RewardLearner(llm, PROMPTS, favoured, **options))
            assert tunings[-1].run("1000ktokens").stopped == "stopped"
        assert without_times(cut) == without_times(whole)
        assert tunings[-1].state.search == once.state.search

    def test_a_stop_while_a_sitting_begins_ends_it(self, llm: TinyLoraLlama, monkeypatch: Any) -> None:
        tuning, make = RewardLearner(llm, PROMPTS, favoured, **QUICK), llm.batch
        monkeypatch.setattr(llm, "batch", lambda *args, **how: (tuning.stop(), make(*args, **how))[1])
        assert tuning.run("4ktokens").steps == 0

    def test_a_sitting_too_short_for_a_step_takes_none(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        first = RewardLearner(llm, PROMPTS, favoured, path=tmp_path / "state", **QUICK).run("2ktokens")
        again = RewardLearner(llm, PROMPTS, favoured, path=tmp_path / "state", **QUICK)
        assert again.run("20tokens").steps == first.steps
        assert again.run("4ktokens").steps > first.steps

    def test_the_state_holds_numbers_and_no_text(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        seen: set[str] = set()
        secret = [f"my secret {word}" for word in PROMPTS]

        def reward(completion: Completion, sample: Sample) -> float:
            seen.add(completion.text)
            return favoured(completion, sample)

        RewardLearner(llm, secret, reward, path=tmp_path / "state", **QUICK).run("3ktokens")
        data = (tmp_path / "state").read_text()
        assert len(data) < 8192
        texts = {text for text, is_key in re.findall(r'"([^"]*)"(:?)', data) if not is_key}
        assert texts == {llm.bases.basis(numbers=13).digest, "reward", "start"}  # its name, and an event
        assert not any(word in data for word in ("secret", "prompt ", *(s for s in seen if len(s) > 3)))
        assert (tmp_path / "state").stat().st_mode & 0o077 == 0
        assert list(tmp_path.iterdir()) == [tmp_path / "state"]

    def test_a_damaged_state_is_refused_and_left(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        path = tmp_path / "state"
        RewardLearner(llm, PROMPTS, favoured, path=path, **QUICK).run("2ktokens")
        content = json.loads(path.read_text())
        search, damaged = content["state"]["search"], ["", "{}", json.dumps({**content, "format": 9})]
        for change in (
            {"start": [0.0]},
            {"best": [None]},
            {"search": search | {"start": [math.nan] * 13}},
            {"search": search | {"sigma": 0}},
        ):
            damaged.append(json.dumps({**content, "state": content["state"] | change}))
        for text in damaged:
            path.write_text(text)
            with pytest.raises(TrainError, match="not a usable state"):
                RewardLearner(llm, PROMPTS, favoured, path=path, **QUICK)
            assert path.read_text() == text

    def test_the_state_of_another_run(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        RewardLearner(llm, PROMPTS, favoured, seed=1, path=tmp_path / "state", **QUICK).run("2ktokens")
        five, usual = (llm.bases.basis(numbers=n) for n in (5, 13))
        for other, message in (
            ({"seed": 2}, "its seed is 1, this run's is 2"),
            ({"seed": 1, "basis": five}, f"its basis is '{usual.digest}', this run's is '{five.digest}'"),
        ):
            with pytest.raises(TrainError, match=message):
                RewardLearner(llm, PROMPTS, favoured, path=tmp_path / "state", **QUICK, **other)
        with pytest.raises(
            FileNotFoundError, match=("missing does not exist: make this directory for the state")
        ):
            RewardLearner(llm, PROMPTS, favoured, path=tmp_path / "missing" / "state", **QUICK)

    def test_a_state_knows_what_the_run_began_with(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        own = MicroVector.random(llm.bases.basis(numbers=5), 0.1, seed=5)

        def indifferent(completion: Completion, sample: Sample) -> float:
            return 0.5

        first = RewardLearner(llm, PROMPTS, indifferent, start=own, path=tmp_path / "state", **QUICK)
        first.run("2ktokens")
        llm.swap(MicroVector.random(llm.bases.basis(numbers=5), 0.1, seed=6))
        found = RewardLearner(llm, PROMPTS, indifferent, path=tmp_path / "state", **QUICK).run("2ktokens")
        assert not found.improved
        assert found.vector == own


class TestBadInput:
    @pytest.fixture(autouse=True)
    def unchanged(self, llm: TinyLoraLlama) -> Iterator[None]:
        own = llm.swap(MicroVector.random(llm.bases.basis(numbers=5), 0.1, seed=5))
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotImprovedWarning)  # what others left may be collected meanwhile
            yield
        assert llm.vector is own

    def test_too_few_prompts(self, llm: TinyLoraLlama) -> None:
        with pytest.raises(TrainError, match="has 1 prompts, expected at least 2"):
            runtime.tune(llm, ["one"], favoured, budget=60, **QUICK)
        for name, least in (("prompts", 1), ("held_back", 1), ("check_every", 1), ("population", 4)):
            with pytest.raises(TrainError, match=f"{name} is {least - 1}: it must be {least} or more"):
                TuneSettings(**{name: least - 1})

    def test_a_reward_that_fails_later(self, llm: TinyLoraLlama, tmp_path: Path) -> None:
        calls = itertools.count(1)

        def late(completion: Completion, sample: Sample) -> float:
            return favoured(completion, sample) if next(calls) < 60 else math.nan

        late.__name__ = "favoured"
        with pytest.raises(TrainError, match="the reward returned nan"):
            runtime.tune(llm, PROMPTS, late, budget="50ktokens", path=tmp_path / "state", **QUICK)
        again = RewardLearner(llm, PROMPTS, favoured, path=tmp_path / "state", **QUICK)
        assert again.run("1ktokens").steps >= 2

    @pytest.mark.parametrize("budget", ["50tokens", 1e-6])
    def test_a_budget_too_small_for_one_step(self, llm: TinyLoraLlama, budget: Any, tmp_path: Path) -> None:
        with pytest.raises(TrainError, match=r"too small: one step takes about \d+ s and \d+ tokens"):
            runtime.tune(llm, PROMPTS, favoured, budget=budget, path=tmp_path / "state", **QUICK)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("budget", ["", "5", "5 parsecs", 0, math.nan])
    def test_what_is_no_budget(self, llm: TinyLoraLlama, budget: Any) -> None:
        with pytest.raises(TrainError, match="budget"):
            runtime.tune(llm, PROMPTS, favoured, budget=budget, **QUICK)

    def test_a_start_that_does_not_fit(self, llm: TinyLoraLlama) -> None:
        with pytest.raises(VectorError, match="no projection has 99 numbers: this model takes"):
            RewardLearner(llm, PROMPTS, favoured, start=MicroVector(np.zeros(99, np.float32)), **QUICK)
        five, seven = (llm.bases.basis(numbers=n) for n in (5, 7))
        with pytest.raises(BasisMismatchError):
            RewardLearner(llm, PROMPTS, favoured, start=MicroVector.zeros(five), basis=seven, **QUICK)
        with pytest.raises(BasisMismatchError):
            RewardLearner(llm, PROMPTS, favoured, basis=support.random_basis(), **QUICK)


def test_what_learning_begins_with() -> None:
    own = support.random_basis(blocks=6, groups=5, rank=8)
    bases = support.bases_with(own)
    basis, start = beginning(bases, None, None)
    assert (basis.size, start) == (13, MicroVector.zeros(basis))
    assert beginning(bases, own, None)[1] == MicroVector.zeros(own)
    unnamed = MicroVector(np.ones(72))
    basis, start = beginning(bases, None, unnamed)
    assert (basis, start.basis) == (bases.basis(rank=2), basis.digest)
    assert beginning(bases, None, start)[1] is start
    with pytest.raises(TrainError, match=r"at most 1,024 numbers, and vectors of basis .* have 1,152: .* 13"):
        beginning(bases, bases.basis(rank=8), None)


def test_budgets_as_text() -> None:
    texts = {"90s": 90, "5m": 300, "1.5h": 5400, " 2 m": 120}
    for text, seconds in texts.items():
        assert Budget.of(text) == Budget(seconds=seconds)
    assert Budget.of("80ktokens") == Budget.of("80000tokens") == Budget(tokens=80_000)
    assert Budget.of(5) == Budget(seconds=5)
