"""The tables and the figure of docs/EVIDENCE.md and docs/LEARNED_BASIS.md, made of the records alone.

Every block of a document between `<!-- evidence: NAME -->` and `<!-- end -->` is one of `BLOCKS`. Without
options documents and figure are written again, in a second. With `--check` nothing is written, and a
difference is an error. `science.py --summary` is the same.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _bars import Bar, bars

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
DOCUMENTS = [DOCS / "EVIDENCE.md", DOCS / "LEARNED_BASIS.md"]
FIGURE = DOCS / "figures" / "evidence.svg"

TASKS = {
    "brevity": "guarded brevity",
    "list-lookup": "list lookup",
    "word-sums": "word sums",
    "formats": "formats",
}
PAPER, LEARNED = "default: r = 2, u = 1, G = 13, tiled", "learned: n = 13, dense"
TITLES = {PAPER: "the paper's", LEARNED: "learned"}
BEHIND = "learned, behind the best prompt"
MIXED = "6 learned, 7 random tiles"
STEPS, HELD_OUT, VALIDATED = 40, 128, 5  # steps, prompts, and steps between validations


def number(value: float) -> str:
    """Return a share as docs write it: two digits, without the zero before the point."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows)]
    return "\n".join(lines)


def runs(arm: str, task: str) -> list[dict[str, Any]]:
    """Return the runs of an arm with the usual settings, by seed."""
    found = [
        row
        for row in bench.read_study(RESULTS / "learned_basis.jsonl")
        if (row["arm"], row["task"], row["settings"]["steps"], row["n"]) == (arm, task, STEPS, HELD_OUT)
    ]
    return sorted(found, key=lambda row: int(row["seed"]))


def both(task: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the runs of the paper's numbers and of the learned ones, of the seeds that both have."""
    paper, learned = runs(PAPER, task), runs(LEARNED, task)
    seeds = {row["seed"] for row in paper} & {row["seed"] for row in learned}
    return [row for row in paper if row["seed"] in seeds], [row for row in learned if row["seed"] in seeds]


def between(values: list[float]) -> float:
    """Return the standard error of the mean of two values or more, by how far they are from each other."""
    return statistics.stdev(values) / math.sqrt(len(values))


def over_seeds(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Return mean and standard error: that over prompts, or that between seeds where it is larger.

    All seeds are measured on the same prompts, so that more of them do not make the first smaller. And two
    seeds may come out alike by chance.
    """
    values = [float(row[key]) for row in rows]
    mean = statistics.mean(values)
    error = between(values) if len(values) > 1 else 0.0
    return mean, max(error, math.sqrt(mean * (1 - mean) / rows[0]["n"]))


def prompts() -> dict[str, dict[str, Any]]:
    """Return what a thorough search found, by task."""
    return {
        row["task"]: row
        for row in bench.read_study(RESULTS / "prompts.jsonl")
        if row["search"]["kind"] == "thorough"
    }


def contestant(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((each for each in row["contestants"] if each["name"] == name), None)


def scores() -> str:
    """Each task: the base, the best prompt, both bases."""
    rows, searched = [], prompts()
    for task, title in TASKS.items():
        paper, learned = both(task)
        best = contestant(searched[task], "best prompt") if task in searched else None
        rows.append(
            [
                title,
                number(statistics.mean(row["base"] for row in paper + learned)),
                with_error(best["mean"], best["standard_error"]) if best else "not searched",
                with_error(*over_seeds(paper, "vector")),
                with_error(*over_seeds(learned, "vector")),
                " ".join(str(row["seed"]) for row in paper),
            ]
        )
    headers = ["task", "base", "best prompt", "13 numbers, the paper's", "13 numbers, learned", "seeds"]
    return markdown(headers, rows)


def behind() -> str:
    """The best prompt alone, with a vector that was trained without it, and with one trained behind it."""
    rows, searched = [], prompts()
    for task, title in TASKS.items():
        found = runs(BEHIND, task)
        if not found:
            continue
        apart = contestant(searched[task], "vector + best prompt")
        rows.append(
            [
                title,
                number(statistics.mean(row["base"] for row in found)),
                with_error(apart["mean"], apart["standard_error"]) if apart else "",
                with_error(*over_seeds(found, "vector")),
                " ".join(f"{row['difference']:+.2f} ± {row['standard_error']:.2f}" for row in found),
                " ".join(f"{row['p']:.1g}" for row in found),
            ]
        )
    headers = ["task", "best prompt", "+ a vector trained without it", "+ one trained behind it"]
    return markdown([*headers, "gain of each seed, paired", "McNemar's p"], rows)


def gains() -> str:
    """Each run's gain over the base, paired, how far learned is ahead, and the mean over tasks."""
    rows, means = [], dict[str, list[float]]()
    for task, title in TASKS.items():
        cells, found = [], both(task)
        for arm, mine in zip((PAPER, LEARNED), found, strict=True):
            means.setdefault(arm, []).append(statistics.mean(row["difference"] for row in mine))
            cells.append(" ".join(f"{row['difference']:+.3f}" for row in mine))
        ahead = [b["difference"] - a["difference"] for a, b in zip(*found, strict=True)]
        error = between(ahead) if len(ahead) > 1 else math.nan
        rows.append([title, *cells, f"{statistics.mean(ahead):+.3f} ± {error:.3f}"])
    paper, learned = (statistics.mean(means[arm]) for arm in (PAPER, LEARNED))
    times = f"{learned / paper:.1f} times"
    rows.append(["mean of the four", f"{paper:+.3f}", f"{learned:+.3f}", times])
    return markdown(
        ["gain of each seed", "13 numbers, the paper's", "13 numbers, learned", "learned is ahead by"], rows
    )


def steps() -> str:
    """The step at which learned directions validate as the paper's do after all steps, a seed each."""
    rows = []
    for task, title in TASKS.items():
        first = []
        for paper, learned in zip(*both(task), strict=True):
            aim, curve = paper["validation"][-1], learned["validation"]
            if len(curve) != 1 + STEPS // VALIDATED:  # a step that looked odd was validated, too
                first.append("not known")
                continue
            reached = (number * VALIDATED for number, value in enumerate(curve) if value >= aim)
            first.append(str(next(reached, "never")))
        rows.append([title, " ".join(first)])
    return markdown(["task", "step, of each seed"], rows)


def curves() -> str:
    """The validation of every run, before it and after every few steps."""
    rows = []
    for task, title in TASKS.items():
        for name, found in zip(TITLES.values(), both(task), strict=True):
            for row in found:
                values = " ".join(number(value) for value in row["validation"])
                rows.append([title, name, str(row["seed"]), values])
    return markdown(["task", "directions", "seed", f"validation, every {VALIDATED} steps"], rows)


def mixed() -> str:
    """Learned directions and random tiles together, beside either alone, of the seeds that all three have."""
    rows = []
    for task, title in TASKS.items():
        found = {row["seed"]: row["difference"] for row in runs(MIXED, task)}
        paper, learned = ({r["seed"]: r["difference"] for r in mine} for mine in both(task))
        seeds = sorted(found.keys() & paper.keys())
        if seeds:
            cells = [" ".join(f"{of[seed]:+.3f}" for seed in seeds) for of in (paper, learned, found)]
            rows.append([title, " ".join(map(str, seeds)), *cells])
    return markdown(
        ["gain of each seed", "seeds", "13 random tiles", "13 learned", "6 learned, 7 tiles"], rows
    )


def costs() -> str:
    """What a request pays for each way, where a search was thorough."""
    rows = []
    for task, row in prompts().items():
        for each in row["contestants"]:
            cost = each["cost"]
            rows.append(
                [
                    TASKS[task],
                    each["name"],
                    with_error(each["mean"], each["standard_error"]),
                    f"{cost['prompt_tokens']:.0f}",
                    f"{cost['first_token_s'] * 1e3:.0f} ms",
                    f"{cost['next_first_token_s'] * 1e3:.0f} ms",
                    f"{cost['sent'] or ''}",
                ]
            )
    headers = ["task", "asked by", "score", "prompt tokens", "first token, cold", "again", "bytes a user"]
    return markdown(headers, rows)


def distilled() -> str:
    """The share of the KL that real fits close, over held-out behaviours and seeds."""
    found = [row for row in bench.read_study(RESULTS / "distillation.jsonl") if "closed" in row]
    if not found:
        return "Not measured yet."
    rows = []
    for name in found[0]["closed"]:
        shares = [row["closed"][name] for row in found]
        error = between(shares)
        step = ", ".join(sorted({f"{row['step_sizes_used'][name]:g}" for row in found}))
        rows.append(
            [name, with_error(statistics.mean(shares), error), number(statistics.median(shares)), step]
        )
    behaviours, seeds = len({row["behaviour"] for row in found}), len({row["seed"] for row in found})
    headers = [f"directions ({behaviours} behaviours, seeds: {seeds})", "share closed", "median", "step size"]
    return markdown(headers, rows)


def shifted() -> str:
    """Gains on the usual held-out prompts beside those on shifted ones."""
    rows = []
    for row in bench.read_study(RESULTS / "shifted.jsonl"):
        usual = [run for run in runs(row["arm"], row["task"]) if run.get("frame") == row["frame"]]
        rows.append(
            [
                TASKS[row["task"]],
                TITLES[row["arm"]],
                str(row["seed"]),
                f"{usual[0]['base']:.2f} {usual[0]['difference']:+.2f}" if usual else "",
                f"{row['base']:.2f} {row['difference']:+.2f} ± {row['standard_error']:.2f}",
            ]
        )
    return markdown(["task", "13 numbers", "seed", "usual: base, gain", "shifted: base, gain"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "scores": scores,
    "behind": behind,
    "gains": gains,
    "steps": steps,
    "curves": curves,
    "mixed": mixed,
    "costs": costs,
    "distilled": distilled,
    "shifted": shifted,
}


def figure() -> str:
    """The figure: a group of bars a task, with standard errors."""
    groups, searched = dict[str, list[Bar]](), prompts()
    for task, title in TASKS.items():
        paper, learned = both(task)
        best = contestant(searched[task], "best prompt") if task in searched else None
        groups[title] = [
            Bar("base", statistics.mean(row["base"] for row in paper + learned), 0.0),
            Bar("best prompt", best["mean"], best["standard_error"])
            if best
            else Bar("best prompt", None, 0.0),
            Bar("13 numbers, the paper's", *over_seeds(paper, "vector")),
            Bar("13 numbers, learned", *over_seeds(learned, "vector")),
        ]
    return bars(groups, "Share of 128 held-out prompts answered as wanted, SmolLM2-135M")


def rebuilt(text: str) -> str:
    """Return a document with its blocks made again.

    Raises:
        ValueError: a block has a name that is not known.
    """

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"there is no block {name}: one of {', '.join(BLOCKS)}")
        return f"<!-- evidence: {name} -->\n\n{BLOCKS[name]()}\n\n<!-- end -->"

    return re.sub(r"<!-- evidence: (?P<name>[a-z]+) -->.*?<!-- end -->", block, text, flags=re.DOTALL)


def stale() -> list[Path]:
    """Return the files that differ from what the records say."""
    found = [page for page in DOCUMENTS if rebuilt(text := page.read_text("utf-8")) != text]
    if not FIGURE.exists() or FIGURE.read_text("utf-8") != figure():
        found.append(FIGURE)
    return found


def write() -> None:
    """Write the documents and the figure again, and print the blocks."""
    for page in DOCUMENTS:
        page.write_text(rebuilt(page.read_text("utf-8")), "utf-8")
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(figure(), "utf-8")
    for name, block in BLOCKS.items():
        print(f"\n{name}\n\n{block()}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument(
        "--check", action="store_true", help="only say whether they are as the records say"
    )
    if not arguments.parse_args().check:
        write()
        return
    if old := stale():
        sys.exit(
            "older than the records: " + ", ".join(path.name for path in old) + "; run this without --check"
        )


if __name__ == "__main__":
    main()
