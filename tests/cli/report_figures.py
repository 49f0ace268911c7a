"""Figures of a run, made up, for tests of reports."""

from __future__ import annotations

from tinylora_edge.cli.demo.results import (
    AnswerPair,
    DemoResult,
    Exported,
    Framed,
    Proof,
    ShownAnswers,
    Timings,
)
from tinylora_edge.cli.report.records import HeldOut, Prompted, Trained

HELD_OUT = HeldOut(
    task="list-lookup",
    n=100,
    base=0.3,
    base_standard_error=0.05,
    vector=0.5,
    vector_standard_error=0.05,
    difference=0.2,
    standard_error=0.06,
    gained=30,
    lost=10,
    p=0.002,
)
PROMPTED = Prompted(
    text="'Answer with one word.'",
    tokens=45.0,
    base_tokens=41.0,
    tried=11,
    answers=176,
    prompt=0.4,
    prompt_standard_error=0.05,
    difference=0.1,
    standard_error=0.05,
    gained=20,
    lost=10,
    p=0.099,
)
CURVE = [
    {"event": "start", "validation": 0.25},
    {"step": 1, "reward": 0.2},
    {"event": "back-off", "step": 2, "validation": 0.0, "best": 0.25, "lr": 0.1},
    {"step": 2, "reward": 0.4, "validation": 0.0},
    {"step": 3, "reward": 0.5, "validation": 0.75},
]
TRAINED = Trained(
    seconds=61.0,
    steps=3,
    best_step=3,
    start_score=0.25,
    best_score=0.75,
    stopped="done",
    options={"samples": 8, "weights": None, "settings": {"prompts": 8, "validation": 12, "lr": None}},
    curve=CURVE,
)
FOUND = DemoResult(
    model="model.gguf",
    quick=False,
    seed=0,
    threads=2,
    export=Exported(seconds=1.0, modules=14, residual=1e-3, digest="ab" * 32, basis="abababab", axes=[]),
    training=TRAINED,
    frame=Framed(hex="11ab", bytes=2, values=[0.5], parts=[("11", "version"), ("ab", "rest")]),
    timing=Timings(load=0.1, plain_load=0.1, swap=1e-4, swaps=20),
    held_out=HELD_OUT,
    prompted=PROMPTED,
    answers=ShownAnswers(
        first=[AnswerPair(prompt="p", base="b", base_reward=0.0, personalized="q", personalized_reward=1.0)],
        differing=[],
        changed=1,
    ),
    proof=Proof(
        logits=10, prompts=1, restored_bit_for_bit=True, restored_difference=0.0, vector_difference=1.5
    ),
    versions={"numpy": "2"},
    seconds=70.0,
)
