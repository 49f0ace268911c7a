"""What named axes do: each is moved, and the measures of all are taken on held-out questions.

Axes are learned as `tinylora-edge learn --axis NAME` does, and each is moved alone, in the deployed engine.
The text of a greedy answer decides its measures. Answers are kept in a JSON-lines file as they end, and what
is learned in a folder: a second call goes on.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import export

from tinylora_edge import MicroVector
from tinylora_edge.exporters import ExportSettings
from tinylora_edge.formats.bundle import Bundle
from tinylora_edge.runtime.llama.model import TinyLoraLlama
from tinylora_edge.runtime.llama.requantize import requantize
from tinylora_edge.tasks import Sample
from tinylora_edge.tasks.behaviours import load_behaviours, load_contrast, load_questions, shipped_axes
from tinylora_edge.train.learned import Learned, LearnSettings, learn

SHARE = 1 / 3
"""How much of its own move an axis may move the measures of others."""


ORDER = ["length", "plainness", "formality"]
"""Axes that are compared by default: one leaves alone what those before it hold."""
CONTRASTS = Path(__file__).with_name("contrasts")
"""Axes that are not shipped, because they did not pass."""


def file_of(name: str, path: str) -> Path | None:
    """The file of an axis: its own, that of one that did not pass, or None for one that is shipped."""
    if path:
        return Path(path)
    return None if name in shipped_axes() else CONTRASTS / f"{name}.jsonl"


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+(?:'[A-Za-z]+)?", text.replace("\u2019", "'"))


def sentences(text: str) -> int:
    return max(1, len(re.findall(r"[.!?]+(?=\s|$)|\n+(?=\S)", text.strip())))


def syllables(word: str) -> int:
    """Groups of vowels, without a silent e at the end."""
    return max(1, len(re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeiouyl])e$", "", word.lower()))))


def length(text: str) -> float:
    return len(words(text))


def contractions(text: str) -> float:
    """Contractions a hundred words."""
    pattern = r"(?:\w+n't|\w+'(?:re|ve|ll|m|d)|(?:it|that|what|there|here|he|she|who|let|how|where)'s)"
    found = [word for word in words(text) if re.fullmatch(pattern, word.lower())]
    return 100 * len(found) / max(1, len(words(text)))


def reading_ease(text: str) -> float:
    """Flesch's: higher is easier (Flesch, "A new readability yardstick", 1948)."""
    found = words(text)
    if not found:
        return math.nan
    each = sum(map(syllables, found)) / len(found)
    return 206.835 - 1.015 * len(found) / sentences(text) - 84.6 * each


def exclamations(text: str) -> float:
    """Exclamation marks a sentence."""
    return text.count("!") / sentences(text)


def items(text: str) -> float:
    """Share of the lines that are items of a list."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(bool(re.match(r"\s*(?:[-*\u2022]|\d+[.)])\s", line)) for line in lines) / max(1, len(lines))


def hedges(text: str) -> float:
    """Words of doubt a hundred words."""
    doubt = {"may", "might", "could", "maybe", "perhaps", "possibly", "probably", "likely", "seems", "unsure"}
    return 100 * sum(word.lower() in doubt for word in words(text)) / max(1, len(words(text)))


MEASURES: dict[str, tuple[str, int, Callable[[str], float]]] = {
    "length": ("words an answer", 1, length),
    "formality": ("contractions a hundred words", -1, contractions),
    "plainness": ("reading ease", 1, reading_ease),
    "warmth": ("exclamation marks a sentence", 1, exclamations),
    "lists": ("share of lines that are items", 1, items),
    "hedging": ("words of doubt a hundred words", 1, hedges),
}
"""Axis -> what its measure is called, 1 or -1 for more or less of it, the measure."""


def learned(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> tuple[Bundle, Learned]:
    """The bundle, and the basis with the axes: from the shipped behaviours that are near no task."""
    bundle = options.bundle or export(folder, ExportSettings(rank=2, u=1, groups=13, projection="random"))[0]
    found = learn(
        bundle,
        options.work,
        behaviours=[each for each in load_behaviours(split="learn") if not each.near],
        axes=[load_contrast(name, path) for name, path in options.axes],
        settings=LearnSettings(seed=options.seed),
        report=lambda figures: say(f"{figures['done']}/{figures['of']} {figures['name']}"),
    )
    return Bundle.find(bundle), found


def answer_missing(
    options: argparse.Namespace, bundle: Bundle, made: Learned, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Answer under every axis at every point, and return all records of this basis and these options."""
    basis, questions = made.basis, load_questions(split="held_out")[: options.questions]
    samples = [Sample(question) for question in questions]
    wanted = [("", 0.0)]
    wanted += [(axis.name, x) for axis in made.axes for x in options.points]
    same = {"basis": basis.digest, "questions": len(questions), "tokens": options.tokens}
    same["weights"] = options.weights

    def kept() -> list[dict[str, Any]]:
        return [row for row in bench.read_study(options.study) if all(row[key] == same[key] for key in same)]

    missing = [point for point in wanted if point not in {(row["axis"], row["x"]) for row in kept()}]
    if not missing:
        return kept()
    base = bundle.base
    if options.weights != "Q4_1":
        base = options.work / f"{options.weights}.gguf"
        if not base.exists():
            requantize(bundle.base, base, options.weights)
    with (
        closing(TinyLoraLlama(str(base), basis=basis, n_ctx=64, verbose=False)) as llm,
        llm._population(samples, options.tokens, sequences=32, n_threads=options.threads) as batch,
    ):
        for axis, x in missing:
            values = np.zeros(basis.size, np.float32)
            if axis:
                values[basis.axis(axis)] = x
            batch.swap(MicroVector(values.reshape(basis.groups, basis.u)) if axis else None)
            found = batch.answer(samples, max_tokens=options.tokens)
            row = same | {"axis": axis, "x": x, "answers": [each.text for each in found]}
            row["ended"] = sum(each.ended for each in found)
            bench.keep(options.study, row)
            say(f"{axis or 'the base'} {x:+g}: {found[0].text[:70]!r}")
    return kept()


def judge(rows: list[dict[str, Any]], names: Sequence[str], points: Sequence[float]) -> list[dict[str, Any]]:
    """Say of each axis how it moves each measure from its first point to its last, and whether it passes.

    A move is in standard deviations of the measure over all answers, so that measures can be compared.
    """
    answers = {(row["axis"], row["x"]): row["answers"] for row in rows}
    taken = {
        name: {point: np.array([MEASURES[name][2](text) for text in said]) for point, said in answers.items()}
        for name in names
    }
    spread = {name: float(np.nanstd(np.concatenate(list(by.values())))) for name, by in taken.items()}
    found = []
    for axis in names:
        sign = MEASURES[axis][1]
        at = [("", 0.0) if x == 0 else (axis, x) for x in sorted({*points, 0.0})]
        means = [float(np.nanmean(taken[axis][point])) for point in at]
        moves = {
            name: float(np.nanmean(taken[name][at[-1]] - taken[name][at[0]])) / max(spread[name], 1e-12)
            for name in names
        }
        gaps = taken[axis][at[-1]] - taken[axis][at[0]]
        gaps = gaps[np.isfinite(gaps)]
        error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)) / max(spread[axis], 1e-12)
        others = max((abs(moves[name]) for name in names if name != axis), default=0.0)
        own = sign * moves[axis]
        monotone = all(sign * (b - a) >= 0 for a, b in pairwise(means))
        passes = monotone and own > 2 * error and others < SHARE * own
        found.append(
            {
                "axis": axis,
                "measure": MEASURES[axis][0],
                "points": [x for _, x in at],
                "means": means,
                "monotone": monotone,
                "own": own,
                "standard_error": error,
                "moves_sd": moves,
                "others": others / own if own > 0 else math.inf,
                "passes": passes,
            }
        )
    return found


def main() -> None:
    parser = bench.parser(__doc__, rounds=1)
    parser.add_argument("--bundle", type=Path, help="with the paper's projections; by default SmolLM2's")
    parser.add_argument(
        "--axes",
        nargs="+",
        default=ORDER,
        metavar="NAME[=FILE]",
        help="in order; shipped, of contrasts/, or of a FILE",
    )
    parser.add_argument("--points", type=float, nargs="+", default=[-0.5, -0.25, 0.25, 0.5])
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--weights", default="BF16", help="type of the deployed file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--study", type=Path, default=Path("axes.jsonl"), help="keeps the answers")
    parser.add_argument("--work", type=Path, default=Path("axes.learn"), help="keeps what is learned")
    options = parser.parse_args()
    options.axes = [(name, file_of(name, path)) for name, _, path in (a.partition("=") for a in options.axes)]
    report = bench.Report("axes", options.json)
    with tempfile.TemporaryDirectory() as folder:
        bundle, made = learned(options, Path(folder), report.say)
        rows = answer_missing(options, bundle, made, report.say)
    found = judge(rows, [axis.name for axis in made.axes], options.points)
    for axis, each in zip(made.axes, found, strict=True):
        each["step"] = {key: value for key, value in vars(axis).items() if key != "name"}
    table = [
        [
            each["axis"],
            f"{each['step']['length']:.2f}",
            each["measure"],
            " ".join(f"{mean:.2f}" for mean in each["means"]),
            f"{each['own']:+.2f} ({each['standard_error']:.2f})",
            f"{each['others']:.2f}",
            "passes" if each["passes"] else "fails",
        ]
        for each in found
    ]
    headers = ["axis", "sides apart", "its measure", f"at {found[0]['points']}", "own move, sd", "others", ""]
    report.say("\n" + bench.table(headers, table))
    report.record |= {"basis": made.basis.digest, "summary": found}
    report.finish()


if __name__ == "__main__":
    main()
