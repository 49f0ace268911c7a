"""The demo's words and its page: what they say for figures of every kind, and for hostile text."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tinylora_edge.cli.demo.curve import curve
from tinylora_edge.cli.demo.report import render
from tinylora_edge.cli.demo.results import (
    AnswerPair,
    DemoResult,
    Exported,
    Framed,
    HeldOut,
    Prompted,
    Proof,
    ShownAnswers,
    Timings,
    Trained,
    duration,
)

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
    export=Exported(seconds=1.0, modules=14, residual=1e-3, digest="ab" * 32, basis="abababab"),
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


def texts(page: str) -> str:
    return "".join(ElementTree.fromstring(page).itertext())


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (0.2, 0.06, "raises the reward on prompts never trained on from 0.300 to 0.500"),
        (-0.2, 0.06, "lowers"),
        (0.2, 0.1, "within two standard errors"),
        (-0.1, 0.06, "within two standard errors"),
        (0.0, 0.0, "within two standard errors"),
        (1.0, 0.0, "raises"),
    ],
)
def test_no_claim_without_the_figure(difference: float, error: float, expected: str) -> None:
    verdict = replace(HELD_OUT, difference=difference, standard_error=error).verdict()
    assert expected in verdict
    assert ("raises" in verdict) == (difference > 2 * error)
    assert verdict in texts(
        render(replace(FOUND, held_out=replace(HELD_OUT, difference=difference, standard_error=error)))
    )


def test_a_prompt_stands_beside_the_vector() -> None:
    text = texts(render(FOUND))
    for part in (
        "a prompt instead0.400 +- 0.050",
        "vector over it+0.100 +- 0.050, paired, McNemar p = 0.099",
        "the best of 11 on training prompts (176 answers",
        "'Answer with one word.'. A request has 45 tokens with it, and 41 with the vector.",
    ):
        assert part in text


def test_a_run_that_found_nothing_says_so() -> None:
    text = replace(TRAINED, best_step=0, best_score=0.25, stopped="silence").summary()
    assert "No step was better than the base" in text
    assert "the vector is zero" in text
    assert "ended early: silence" in text
    assert "The vector of step 3 is kept" in TRAINED.summary()
    assert "early" not in TRAINED.summary()


def test_hostile_text_stays_text() -> None:
    hostile = "</td><script>alert('&amp;\"')</script>\x00\x1b[31m\u202e\ud800 ]]>"
    answer = replace(FOUND.answers.first[0], prompt=hostile, base=hostile, personalized=hostile)
    page = render(replace(FOUND, answers=replace(FOUND.answers, first=[answer]), model=hostile))
    assert "<script" not in page
    page.encode()  # as it is written
    text = texts(page)
    assert text.count("</td><script>alert('&amp;\"')</script>\ufffd\ufffd[31m\ufffd\ufffd ]]>") == 5
    assert "\x00" not in text


def test_the_page_has_the_figures() -> None:
    text = texts(render(FOUND))
    for part in ("0.300 +- 0.050", "+0.200 +- 0.060", "McNemar p = 0.002", "11ab", "1 min 1 s", "1.50"):
        assert part in text
    assert "short run" not in text
    assert "short run" in texts(render(replace(FOUND, quick=True)))
    assert "settings.validation" in text
    assert "weights" not in text  # None: the run decides


def test_the_page_says_how_the_answers_were_chosen() -> None:
    assert "whose answers differ" not in texts(render(FOUND))
    other = replace(FOUND.answers.first[0], prompt="another")
    text = texts(render(replace(FOUND, answers=replace(FOUND.answers, differing=[other], changed=7))))
    assert "the first 1 of these prompts" in text
    assert "the first 1 others of the 7 whose answers differ" in text
    assert "another" in text


def test_the_curve_has_every_point() -> None:
    svg = ElementTree.fromstring(curve(CURVE, 3, 3))
    sampled, validation = svg.findall("polyline")
    assert (sampled.get("class"), validation.get("class")) == ("sampled", "validation")
    heights = {}
    for line in (sampled, validation):
        points = [tuple(map(float, p.split(","))) for p in str(line.get("points")).split()]
        heights[line.get("class")] = points
    assert len(heights["sampled"]) == 3
    assert len(heights["validation"]) == len(svg.findall("circle")) == 3
    (x0, y0), (x2, y2), (x3, y3) = heights["validation"]
    assert x0 < x2 < x3
    assert y3 < y0 < y2  # 0.75 is drawn above 0.25, and that above 0
    assert [c.get("class") for c in svg.findall("circle")] == ["validation", "validation", "validation best"]
    assert len(svg.findall("path[@class='event']")) == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 14, 15, 40, 60, 999])
def test_the_axis_has_few_round_labels_and_both_ends(steps: int) -> None:
    svg = ElementTree.fromstring(curve([], 0, steps))
    labels = [t.text for t in svg.findall("text") if t.get("text-anchor") == "middle"][:-1]
    marks = [int(str(label)) for label in labels]
    assert marks[0] == 0
    assert marks[-1] == steps
    assert marks == sorted(set(marks))
    assert 2 <= len(marks) <= 10


def test_durations() -> None:
    assert [duration(s) for s in (0.84, 9.94, 42.2, 59.6, 250.0)] == [
        "0.8 s",
        "9.9 s",
        "42 s",
        "1 min 0 s",
        "4 min 10 s",
    ]
