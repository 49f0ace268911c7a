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
from collections.abc import Callable, Collection
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
    "tool-calls": "tool calls",
    "house-style": "house style",
}
FOUR = 4  # of them, the first, are what learned directions were to be ahead on, in the mean
PAPER = "default: r = 2, u = 1, G = 13, tiled"
LEARNED = "learned, as shipped"
FAR = "learned: n = 13, dense"
LIGHT, ATTENTION = "learned, light", "learned, attention"
TITLES = {PAPER: "the paper's", LEARNED: "learned, as shipped", FAR: "learned far from all tasks"}
BEHIND = "learned, behind the best prompt"
VARIANTS = {
    "learned, without its prior": "without their prior",
    "6 learned, 7 random tiles": "6 learned, 7 tiles",
    "13 learned, 13 random tiles": "13 learned, 13 tiles",
}
STEPS, HELD_OUT, VALIDATED = 40, 128, 5  # steps, prompts, and steps between validations
SHIFTED = 64  # shifted prompts


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
    asked = (arm, task, STEPS, HELD_OUT)
    rows = bench.read_study(RESULTS / "learned_basis.jsonl")
    found = [row for row in rows if (row["arm"], row["task"], row["settings"]["steps"], row["n"]) == asked]
    return sorted(found, key=lambda row: int(row["seed"]))


def ways(task: str) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of a task in each basis."""
    return {arm: runs(arm, task) for arm in TITLES}


def ahead(of: list[dict[str, Any]], paper: list[dict[str, Any]]) -> list[float]:
    """Return how far runs are ahead of the paper's basis, of each seed that both have."""
    gained = {row["seed"]: float(row["difference"]) for row in paper}
    return [float(row["difference"]) - gained[row["seed"]] for row in of if row["seed"] in gained]


def between(values: list[float]) -> float:
    """Return the standard error of a mean, by how far values are from each other; 0 of one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def over_seeds(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Return mean and standard error: that over prompts, or that between seeds where it is larger.

    All seeds are measured on the same prompts, so that more of them do not make the first smaller. And two
    seeds may come out alike by chance.
    """
    values = [float(row[key]) for row in rows]
    mean = statistics.mean(values)
    return mean, max(between(values), math.sqrt(mean * (1 - mean) / rows[0]["n"]))


def trained() -> dict[str, str]:
    """Return the tasks that there are runs of in the directions that are shipped, and their titles."""
    return {task: title for task, title in TASKS.items() if runs(LEARNED, task)}


def prompts() -> dict[str, dict[str, Any]]:
    """Return what a search found, by task: the thorough one, where there was one."""
    rows = bench.read_study(RESULTS / "prompts.jsonl")
    return {
        row["task"]: row for kind in ("quick", "thorough") for row in rows if row["search"]["kind"] == kind
    }


def contestant(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((each for each in row["contestants"] if each["name"] == name), None)


def best_prompt(task: str) -> tuple[dict[str, Any] | None, str]:
    """Return what the best prompt of a task scored, and how many it is the best of where these are few."""
    row = prompts().get(task)
    if row is None:
        return None, ""
    quick = row["search"]["kind"] == "quick"
    return contestant(row, "prompt" if quick else "best prompt"), (
        f" (of {row['search']['tried']})" if quick else ""
    )


def scores() -> str:
    """Each task: the base, the best prompt, and 13 numbers in each basis."""
    rows = []
    for task, title in trained().items():
        found = ways(task)
        best, few = best_prompt(task)
        rows.append(
            [
                title,
                number(statistics.mean(row["base"] for mine in found.values() for row in mine)),
                with_error(best["mean"], best["standard_error"]) + few if best else "not searched",
                *(with_error(*over_seeds(mine, "vector")) if mine else "" for mine in found.values()),
                ", ".join(str(len(mine)) for mine in found.values()),
            ]
        )
    headers = ["task", "base", "best prompt", *(f"13 numbers, {title}" for title in TITLES.values())]
    return markdown([*headers, "seeds"], rows)


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
    for task, title in trained().items():
        found, cells = ways(task), []
        for arm, mine in found.items():
            cells.append(" ".join(f"{row['difference']:+.3f}" for row in mine))
            means.setdefault(arm, []).append(
                statistics.mean(row["difference"] for row in mine) if mine else math.nan
            )
            if arm != PAPER:
                by = ahead(mine, found[PAPER])
                error = f" ± {between(by):.3f}" if len(by) > 1 else ""
                cells.append(f"{statistics.mean(by):+.3f}{error}" if by else "")
        rows.append([title, *cells])
    for name, count in (("mean of the first four", FOUR), ("mean of all", len(means[PAPER]))):
        if name == "mean of all" and (count == FOUR or any(map(math.isnan, means[PAPER]))):
            continue  # nothing more, or not the same tasks
        paper = statistics.mean(means[PAPER][:count])
        cells = [f"{paper:+.3f}"]
        for arm in list(TITLES)[1:]:
            mean = statistics.mean(means[arm][:count])
            cells += ["", ""] if math.isnan(mean) else [f"{mean:+.3f}", f"{mean / paper:.1f} times"]
        rows.append([name, *cells])
    headers = ["gain of each seed", TITLES[PAPER]]
    for arm in list(TITLES)[1:]:
        headers += [TITLES[arm], "is ahead by"]
    return markdown(headers, rows)


def steps() -> str:
    """The step at which learned directions validate as the paper's do after all steps, a seed each."""
    rows = []
    for task, title in trained().items():
        found = ways(task)
        aims = {row["seed"]: row["validation"][-1] for row in found[PAPER]}
        if not aims:
            continue
        cells = []
        for arm in list(TITLES)[1:]:
            cells.append(" ".join(first(row, aims[row["seed"]]) for row in found[arm] if row["seed"] in aims))
        rows.append([title, *cells])
    return markdown(["step, of each seed", *list(TITLES.values())[1:]], rows)


def first(run: dict[str, Any], aim: float) -> str:
    """Return the step at which a run's validation is as high as an aim."""
    curve, usual = run["validation"], list(range(0, STEPS + 1, VALIDATED))
    steps = run.get("validated_at") or (usual if len(curve) == len(usual) else ["not known"] * len(curve))
    reached = (step for step, value in zip(steps, curve, strict=True) if value >= aim)
    return str(next(reached, "never"))


def curves() -> str:
    """The validation of every run, before it and after every few steps."""
    rows = []
    for task, title in trained().items():
        for arm, found in ways(task).items():
            for row in found:
                values = " ".join(number(value) for value in row["validation"])
                rows.append([title, TITLES[arm], str(row["seed"]), values])
    return markdown(["task", "directions", "seed", f"validation, every {VALIDATED} steps"], rows)


def beside(arms: dict[str, str], chosen: Collection[str]) -> str:
    """Gains of some arms beside others, a row a task and seed that one of them was run with."""
    rows = []
    for task, title in TASKS.items():
        found = {arm: {row["seed"]: row["difference"] for row in runs(arm, task)} for arm in arms}
        for seed in sorted({seed for arm in chosen for seed in found[arm]}):
            gained = [f"{mine[seed]:+.3f}" if seed in mine else "" for mine in found.values()]
            rows.append([title, str(seed), *gained])
    return markdown(["task", "seed", *arms.values()], rows)


def variants() -> str:
    """Other uses of directions that are far from all tasks, beside both bases."""
    return beside({PAPER: "13 random tiles", FAR: "13 learned", **VARIANTS}, VARIANTS)


def light() -> str:
    """The shipped directions of few modules, beside those of all."""
    learned = {LEARNED: "learned, 210", ATTENTION: "attention, 120", LIGHT: "light, 80"}
    return beside({PAPER: "the paper's, 210 modules", **learned}, [LIGHT])


def costs() -> str:
    """What a request pays for each way, where a search was made."""
    rows, searched = [], prompts()
    for task in filter(searched.get, TASKS):
        for each in searched[task]["contestants"]:
            cost = each["cost"]
            times = [f"{cost[key] * 1e3:.0f} ms" for key in ("first_token_s", "next_first_token_s")]
            score = with_error(each["mean"], each["standard_error"])
            tokens, sent = f"{cost['prompt_tokens']:.0f}", f"{cost['sent'] or ''}"
            rows.append([TASKS[task], each["name"], score, tokens, *times, sent])
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
    measured = bench.read_study(RESULTS / "held_out.jsonl")
    for row in (row for row in measured if (row["prompts"], row["n"]) == ("shifted", SHIFTED)):
        usual = [run for run in runs(row["arm"], row["task"]) if run.get("frame") == row["frame"]]
        names = [TASKS[row["task"]], TITLES[row["arm"]], str(row["seed"])]
        known = f"{usual[0]['base']:.2f} {usual[0]['difference']:+.2f}" if usual else ""
        gained = f"{row['base']:.2f} {row['difference']:+.2f} ± {row['standard_error']:.2f}"
        rows.append([*names, known, gained])
    return markdown(["task", "13 numbers", "seed", "usual: base, gain", "shifted: base, gain"], rows)


MADE = (scores, behind, gains, steps, curves, variants, light, costs, distilled, shifted)
BLOCKS: dict[str, Callable[[], str]] = {block.__name__: block for block in MADE}


def figure() -> str:
    """The figure: a group of bars a task, with standard errors."""
    groups = dict[str, list[Bar]]()
    for task, title in trained().items():
        found = ways(task)
        best, _ = best_prompt(task)
        prompt = (best["mean"], best["standard_error"]) if best else (None, 0.0)
        groups[title] = [
            Bar("base", statistics.mean(row["base"] for mine in found.values() for row in mine), 0.0),
            Bar("best prompt", *prompt),
            *(
                Bar(name, *(over_seeds(found[arm], "vector") if found[arm] else (None, 0.0)))
                for name, arm in (("13 numbers, the paper's", PAPER), ("13 numbers, learned", LEARNED))
            ),
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
        names = ", ".join(path.name for path in old)
        sys.exit(f"older than the records: {names}; run this without --check")


if __name__ == "__main__":
    main()
