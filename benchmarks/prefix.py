"""What it saves to run once what all prompts begin with: a gradient of GRPO, and a fit of `distill`.

By turns in one process, on a core's time. What comes out is compared, too. Tokens are random, since their
time is not that of what they say: 8 prompts of 16 tokens behind what they begin with, 8 completions of 12
tokens each, as a step of word sums or list lookup has them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _subjects import LEARNED, SCALES, export
from numpy.typing import NDArray

from tinylora_edge.train import learner
from tinylora_edge.train.adapter import Adapter
from tinylora_edge.train.grpo import Loss
from tinylora_edge.train.learned import Lesson, Student
from tinylora_edge.train.learned.distillation import directions_of
from tinylora_edge.train.learner import Group, Learner
from tinylora_edge.train.model import load_model

ONCE, EACH = "once", "for each prompt"
WORTH = {ONCE: learner._WORTH, EACH: 10**9}
TEMPLATE = 29
"""Tokens that the chat template of SmolLM2 writes before a question."""
BEGINNINGS = {"the chat template": TEMPLATE, "two worked examples": 178, "the best prompt of formats": 394}


def main() -> None:
    options = bench.parser(__doc__, rounds=2).parse_args()
    report = bench.Report("prefix", options.json)
    torch.set_num_threads(1)
    dice = np.random.default_rng(0)
    answers: dict[str, NDArray[np.float32]] = {}
    times: dict[str, dict[str, dict[str, float]]] = {}

    def ids(count: int) -> NDArray[np.int32]:
        return dice.integers(100, 40_000, count).astype(np.int32)

    def behind(begin: NDArray[np.int32], count: int, tokens: int) -> list[NDArray[np.int32]]:
        return [np.concatenate([begin, ids(tokens)]) for _ in range(count)]

    def measure(name: str, work: Callable[[], NDArray[np.float32]]) -> None:
        def contestant(way: str) -> Callable[[], float]:
            def run() -> float:
                learner._WORTH = WORTH[way]
                began = time.process_time()
                answers[way] = work()
                return time.process_time() - began

            return run

        found = bench.interleave({way: contestant(way) for way in WORTH}, options.rounds)
        gap = float(np.abs(answers[ONCE] - answers[EACH]).max() / np.abs(answers[EACH]).max())
        if gap > 1e-3:
            raise SystemExit(f"{name}: what comes out differs by {gap:.2g}")
        times[name] = {way: bench.summarize(seconds) for way, seconds in found.items()}

    with tempfile.TemporaryDirectory() as folder:
        bundle, basis = export(Path(folder), SCALES)
        model = load_model(bundle / "base.gguf")
        with Adapter(model, basis) as adapter:
            one = Learner(model, adapter, temperature=1.0)
            for name, common in BEGINNINGS.items():
                zeros, ones = [np.zeros(12, np.float32)] * 8, np.ones(8, np.float32)
                groups = [
                    Group(
                        prompt,
                        [ids(12) for _ in range(8)],
                        zeros,
                        dice.normal(size=8).astype(np.float32),
                        ones,
                    )
                    for prompt in behind(ids(common), 8, 16)
                ]
                measure(f"a gradient, {common} tokens: {name}", partial(gradient, one, groups))
            one.close()
        model.set_attn_implementation("eager")
        student = Student(model, basis)
        told, bare = (behind(ids(count), 10, 12) for count in (45, TEMPLATE))
        lesson = Lesson("any", told, bare, [ids(14) for _ in range(10)])
        (Path(folder) / "learned").mkdir()
        axes = directions_of(export(Path(folder) / "learned", LEARNED)[1])
        measure(
            "a fit of 10 questions, 3 steps",
            lambda: student.fit(lesson, steps=3, spread=0.1, directions=axes).values,
        )
        student.close()
    rows = [
        [name, *(f"{found[way]['median']:.1f}" for way in WORTH), f"{ratio(found):.2f}"]
        for name, found in times.items()
    ]
    report.say(bench.table(["core seconds", *WORTH, "times as fast"], rows))
    report.record |= {"core_seconds": times}
    report.target("a gradient behind the longest prompt", ratio(list(times.values())[2]), ">=", 1.5)
    report.finish()


def gradient(one: Learner, groups: list[Group]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = one.gradient(groups, Loss(importance_cap=0)).grad.numpy()
    return found


def ratio(found: dict[str, dict[str, float]]) -> float:
    return found[EACH]["median"] / found[ONCE]["median"]


if __name__ == "__main__":
    main()
