"""The figures of docs/EVIDENCE.md, one a question, drawn by matplotlib from the records, in light and dark.

A figure's file says which data it was made of, by their digest. So whether a figure is older than the records
can be seen without drawing it, and another version of matplotlib makes no figure stale.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _records import (
    ALL,
    ALL_BUNDLE,
    LEARNED,
    MORE,
    PAPER,
    TASKS,
    TITLES,
    WAYS,
    best_prompt,
    between,
    distillations,
    drifts,
    on_shifted,
    over_seeds,
    prompts,
    runs,
    seed_of,
    trained,
    validated,
    ways,
)

INK, RULE = "#24292f", "#d0d7de"
BASE, PROMPT, PAPERS, SHIPPED, BOTH = "#afb8c1", "#d4a72c", "#80b3ff", "#0969da", "#8250df"
IN_THE_DARK = {
    INK: "#e6edf3",
    RULE: "#30363d",
    BASE: "#6e7681",
    PROMPT: "#bb8009",
    PAPERS: "#316dca",
    SHIPPED: "#79c0ff",
    BOTH: "#d2a8ff",
}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "font.size": 8.5,
    "grid.color": RULE,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tinylora-edge",  # parts have the same names in every run
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 7.6  # inches
STAMP = re.compile(r"made of records with SHA-256 ([0-9a-f]{64})")


@dataclass(frozen=True)
class EvidenceFigure:
    """One question: the data that answer it, and how they are drawn.

    Attributes:
        title: of the figure.
        height: inches.
        data: returns lists and objects of JSON.
        draw: puts them into an empty figure of matplotlib.
    """

    title: str
    height: float
    data: Callable[[], Any]
    draw: Callable[[Any, Any], None]

    def svg(self) -> str:
        """Return the figure as an SVG document, with colours for light and for dark pages."""
        import matplotlib
        from matplotlib.figure import Figure

        data, file = self.data(), io.StringIO()
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            figure.suptitle(self.title, x=0.01, ha="left")
            self.draw(figure, data)
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = re.sub(
            r"font: ([\d.]+px|bold [\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", file.getvalue()
        )
        light, dark = list[str](), list[str]()
        for number, (colour, other) in enumerate(IN_THE_DARK.items()):
            text = text.replace(colour, f"var(--c{number})")
            light.append(f"--c{number}: {colour}")
            dark.append(f"--c{number}: {other}")
        head = (
            f"<!-- made of records with SHA-256 {digest(data)} -->\n<style>svg {{ {'; '.join(light)} }} "
            f"@media (prefers-color-scheme: dark) {{ svg {{ {'; '.join(dark)} }} }}</style>"
        )
        text = re.sub(r"<svg [^>]*>", lambda found: f"{found[0]}\n{head}", text, count=1)
        return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"

    def is_in(self, text: str) -> bool:
        """Whether a document was made of the present data."""
        found = STAMP.search(text)
        return found is not None and found[1] == digest(self.data())


def digest(data: Any) -> str:
    """Return the SHA-256 of a figure's data, in hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def scored() -> Any:
    """Each task: what base, best prompt and numbers scored, with standard errors; None where not run."""
    groups = {}
    for task, title in trained().items():
        found, (best, _) = ways(task), best_prompt(task)
        base = statistics.mean(row["base"] for mine in found.values() for row in mine)
        prompt = (best["mean"], best["standard_error"]) if best else (None, 0.0)
        groups[title] = [["base", base, 0.0], ["best prompt", *prompt]]
        for arm in (PAPER, LEARNED, ALL):
            mine = runs(arm, task)
            groups[title].append([WAYS[arm], *(over_seeds(mine, "vector") if mine else (None, 0.0))])
    return rounded(groups)


def draw_scored(figure: Any, data: Any) -> None:
    axes = figure.subplots()
    names = [name for name, *_ in next(iter(data.values()))]
    for place, (name, tone) in enumerate(zip(names, (BASE, PROMPT, PAPERS, SHIPPED, BOTH), strict=True)):
        for group, rows in enumerate(data.values()):
            _, value, error = rows[place]
            at = group + (place - 2) * 0.18
            if value is None:
                axes.text(at, 0.01, "?", ha="center")
                continue
            axes.bar(at, value, 0.16, color=tone, label=name if group == 0 else None)
            if error:
                axes.errorbar(at, value, error, color=INK, linewidth=1)
            axes.text(at, value + error + 0.015, f"{value:.2f}".lstrip("0"), ha="center", fontsize=7)
    axes.set_xticks(range(len(data)), list(data))
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 1)
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=len(names))


def paid() -> Any:
    """Each task that a prompt was searched for: [way, prompt tokens, score, its standard error]."""
    searched = prompts()
    return rounded(
        {
            TASKS[task]: [
                [each["name"], each["cost"]["prompt_tokens"], each["mean"], each["standard_error"]]
                for each in searched[task]["contestants"]
            ]
            for task in filter(searched.get, TASKS)
        }
    )


def draw_paid(figure: Any, data: Any) -> None:
    tones = {"base": BASE, "vector": SHIPPED, "prompt": PROMPT, "vector + prompt": BOTH}
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (task, rows) in zip(panels.flat, data.items(), strict=False):
        for name, tokens, mean, error in rows:
            axes.errorbar(tokens, mean, error, fmt="o", color=tones[name.replace("best ", "")])
        axes.set_title(task)
        axes.set_xscale("log", base=2)
        axes.set_xticks([50, 100, 200, 400], ["50", "100", "200", "400"])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.grid()
    panels[-1, 1].set_xlabel("tokens of a prompt")
    handles = [figure.axes[0].plot([], [], "o", color=tone, label=name)[0] for name, tone in tones.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(tones))


def more() -> Any:
    """Each task that more numbers were trained for: [how many, their name, mean gain, its error]."""
    groups: dict[str, Any] = {}
    for task, title in TASKS.items():
        found = {arm: mine for arm in (LEARNED, *MORE) if (mine := runs(arm, task))}
        if set(found) & set(MORE):
            groups[title] = [
                [
                    rows[0]["values"],
                    MORE.get(arm, "13 numbers"),
                    statistics.mean(row["difference"] for row in rows),
                    max(between([row["difference"] for row in rows]), rows[0]["standard_error"]),
                ]
                for arm, rows in found.items()
            ]
    return rounded(groups)


def draw_more(figure: Any, data: Any) -> None:
    axes = figure.subplots()
    tones = SHIPPED, PROMPT, BOTH, PAPERS, BASE, INK  # as many as there are tasks
    for (task, rows), tone, mark in zip(data.items(), tones, "osD^vP", strict=False):
        counts, _, gains, errors = zip(*rows, strict=True)
        axes.errorbar(counts, gains, errors, marker=mark, color=tone, label=task, linewidth=1)
    names = {count: name for rows in data.values() for count, name, *_ in rows}
    axes.set_xscale("log")
    axes.set_xticks(list(names), [name.replace(" ", "\n", 1) for name in names.values()])
    axes.minorticks_off()
    axes.set_xlabel("what is trained")
    axes.set_ylim(0)
    axes.set_ylabel("gain")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3)


def soon() -> Any:
    """Each of the first four tasks, each basis: a curve of [step, validation] a seed."""
    return rounded(
        {
            TASKS[task]: {
                TITLES[arm]: [
                    list(zip(steps, row["validation"], strict=True))
                    for row in ways(task)[arm]
                    if (steps := validated(row))
                ]
                for arm in (PAPER, LEARNED)
            }
            for task in list(TASKS)[:4]
        }
    )


def draw_soon(figure: Any, data: Any) -> None:
    for axes, (task, arms) in zip(
        figure.subplots(2, 2, sharex=True, sharey=True).flat, data.items(), strict=True
    ):
        for tone, (name, found) in zip((PAPERS, SHIPPED), arms.items(), strict=True):
            for curve in found:
                axes.plot(*zip(*curve, strict=True), color=tone, linewidth=0.7, alpha=0.6)
            if not found:
                continue
            shared = sorted(set.intersection(*({step for step, _ in curve} for curve in found)))
            mean = [statistics.mean(dict(curve)[step] for curve in found) for step in shared]
            axes.plot(shared, mean, color=tone, linewidth=2.2, label=f"{name}, {len(found)}")
        axes.set_title(task)
        axes.set_ylim(0, 1)
        axes.grid()
        axes.legend(loc="best", fontsize=7.5, title="seeds of", title_fontsize=7.5)
    figure.supxlabel("steps of GRPO", fontsize=8.5)


def elsewhere() -> Any:
    """Each task, each way: [mean gain on usual prompts, on shifted ones, how many]; None: not measured."""
    measured = on_shifted()
    groups: dict[str, Any] = {}
    for task, title in TASKS.items():
        cells = []
        for arm in WAYS:
            pairs = [
                (usual["difference"], row["difference"])
                for row, usual in measured
                if usual is not None and (row["task"], row["arm"]) == (task, arm)
            ]
            means = [statistics.mean(each) for each in zip(*pairs, strict=True)]
            cells.append([*means, len(pairs)] if pairs else None)
        if any(cells):
            groups[title] = cells
    return rounded(groups)


def draw_elsewhere(figure: Any, data: Any) -> None:
    axes, tones = figure.subplots(), (PROMPT, PAPERS, SHIPPED, BOTH)
    for group, cells in enumerate(data.values()):
        for place, (cell, tone) in enumerate(zip(cells, tones, strict=True)):
            at = group + (place - 1.5) * 0.22
            if cell is None:
                axes.text(at, 0.01, "?", ha="center")
                continue
            usual, shifted, _ = cell
            axes.bar(at, usual, 0.19, facecolor="none", edgecolor=tone, linewidth=1.2)
            axes.bar(at, shifted, 0.19, color=tone)
    axes.set_xticks(range(len(data)), list(data))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel("gain")
    axes.grid(axis="y")
    for name, tone in zip(WAYS.values(), tones, strict=True):
        axes.bar(0, 0, color=tone, label=name)
    axes.bar(0, 0, facecolor="none", edgecolor=INK, label="usual prompts")
    figure.legend(loc="outside lower center", ncols=3)


def closed() -> Any:
    """Each choice of directions: the share of the KL that it closes, of each behaviour, over seeds."""
    found = distillations()
    return rounded(
        {
            name: [
                statistics.mean(row["closed"][name] for row in found if row["behaviour"] == behaviour)
                for behaviour in sorted({row["behaviour"] for row in found})
            ]
            for name in found[0]["closed"]
        }
    )


def draw_closed(figure: Any, data: Any) -> None:
    axes = figure.subplots()
    tones = {"the paper's": PAPERS, "learned": SHIPPED, "all of R": BOTH}
    for place, (name, shares) in enumerate(data.items()):
        spread = [place + (i - (len(shares) - 1) / 2) * 0.04 for i in range(len(shares))]
        axes.plot(sorted(shares), spread, "o", color=tones[name], markersize=4)
        axes.errorbar(
            statistics.mean(shares), place + 0.32, xerr=between(shares), fmt="D", color=INK, markersize=4
        )
    axes.set_yticks(range(len(data)), list(data))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(data) - 0.4, -0.4)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x")
    axes.set_xlabel("share of the KL closed: a point a behaviour, and the mean with its standard error")


def moved() -> Any:
    """Vectors whose drift was measured: [series, label, gain, its error, KL, its error]."""
    rows = []
    for row in drifts():
        series = f"{TASKS[row['task']]}, seed {seed_of(row)}: " + {
            "tiled": "the paper's",
            "learned": "learned far from all tasks, shortened",
            ALL_BUNDLE: "840 numbers",
        }.get(row["bundle"], f"tune, {row['budget']}" if "budget" in row else "learned, as shipped")
        label = f"x {row['scale']:g}" if "scale" in row else f"{row.get('anchor') or 0:g}"
        drift = row["drift"]
        rows.append(
            [series, label, row["difference"], row["standard_error"], drift["kl"], drift["standard_error"]]
        )
    return rounded(sorted(rows, key=lambda row: (row[0], row[4])))


def draw_moved(figure: Any, data: Any) -> None:
    axes = figure.subplots()
    names = list(dict.fromkeys(row[0] for row in data))
    marks = iter("osD^vP*X<>")
    for name in names:
        points = [row for row in data if row[0] == name]
        words = {"paper": PAPERS, "far": PROMPT, "tune": BASE, "840": BOTH}
        tone = next((tone for word, tone in words.items() if word in name), SHIPPED)
        _, labels, gains, errors, kls, kl_errors = zip(*points, strict=True)
        axes.errorbar(kls, gains, errors, kl_errors, marker=next(marks), color=tone, label=name, linewidth=1)
        for label, x, y in zip(labels, kls, gains, strict=True):
            axes.annotate(label, (x, y), (5, 5), textcoords="offset points", fontsize=7.5)
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.set_xlabel(
        "KL to the base on 228 general prompts, nats a token (beside a point: --anchor, or the scale)"
    )
    axes.set_ylabel("gain")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)


def rounded(data: Any) -> Any:
    """Return the data with six digits: what a platform adds last is none of theirs."""
    if isinstance(data, float):
        return round(data, 6)
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list | tuple) else data


EVIDENCE = {
    "evidence": EvidenceFigure(
        "Share of 128 held-out prompts answered as wanted, SmolLM2-135M", 3.1, scored, draw_scored
    ),
    "costs": EvidenceFigure(
        "The score, and the prompt tokens that a request pays for it", 4.2, paid, draw_paid
    ),
    "more": EvidenceFigure("The gain, by how many numbers are trained", 3.2, more, draw_more),
    "curves": EvidenceFigure("The score on 48 validation prompts during training", 4.6, soon, draw_soon),
    "shifted": EvidenceFigure("What is left of a gain on shifted prompts", 3.1, elsewhere, draw_elsewhere),
    "distilled": EvidenceFigure(
        "What 13 numbers hold of prompts of unknown families", 2.6, closed, draw_closed
    ),
    "drift": EvidenceFigure("Gain, and how far the model moves elsewhere", 3.9, moved, draw_moved),
}
