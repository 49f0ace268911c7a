"""The figures of docs/EVIDENCE.md, drawn by matplotlib from the records, in light and dark colours.

A figure's file has the digest of its data. So it can be checked against the records without drawing it, and a
new version of matplotlib does not make it stale.
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
    LEARNED,
    PAPER,
    SERVERS,
    WAYS,
    best_prompt,
    between,
    crowds,
    gains,
    messages,
    over_seeds,
    public,
    runs,
    titled,
    trained,
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
    "svg.fonttype": "none",  # text stays text, and does not become shapes
    "svg.hashsalt": "tinylora-edge",  # so that elements have the same ids in every run
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 7.6  # inches
STAMP = re.compile(r"made of records with SHA-256 ([0-9a-f]{64})")


@dataclass(frozen=True)
class EvidenceFigure:
    """A figure: its data, and how they are drawn.

    Attributes:
        title: of the figure.
        height: inches.
        data: returns the data, as JSON has them.
        draw: draws the data into an empty figure of matplotlib.
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
        text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", file.getvalue())
        # The light colours stay in the elements, for renderers without style sheets.
        dark = " ".join(
            f'[style*="{part}: {colour}"] {{ {part}: {other} !important }}'
            for colour, other in IN_THE_DARK.items()
            for part in ("fill", "stroke")
        )
        head = (
            f"<!-- made of records with SHA-256 {digest(data)} -->\n"
            f"<style>@media (prefers-color-scheme: dark) {{ {dark} }}</style>"
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
    """Return the scores of base, best prompt and vectors by task, with standard errors; None: not run."""
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


def frontier() -> Any:
    """Return [what, bytes a user, mean slot F1 on SNIPS] by model, of each rank with its best number of
    steps."""
    models: dict[str, dict[str, Any]] = {name: {} for name in MODELS.values()}
    for arm, rows in public("snips").items():
        row, kind = rows[0], arm.partition(", ")[0].replace("plain", "rank")
        model = next((name for stem, name in MODELS.items() if row["model"].startswith(stem)), None)
        usual = row["each"] == 70 and not row.get("held") and "losses" in row and row["steps"] <= 240
        if model is None or not usual or "slot_f1" not in row or "long steps" in arm:
            continue
        score = statistics.mean(row["slot_f1"] for row in rows)
        if score > models[model].get(kind, [0.0])[-1]:
            size, *dtype = kind.split("-q")  # in short, as panels are narrow
            models[model][kind] = [", q".join([titled(size), *dtype]), row["bytes"], score]
    return rounded({name: [*best.values()] for name, best in models.items()})


MODELS = {
    "SmolLM2": "SmolLM2-135M",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B",
    "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B",
}
"""Beginning of a record's model -> the title of its panel of the frontier."""
APART = 0.055
"""Distance, in F1, between names on one side of their points, so that none covers another."""


def draw_frontier(figure: Any, data: Any) -> None:
    for axes, (title, rows) in zip(figure.subplots(1, len(data), sharey=True), data.items(), strict=True):
        lowest = {"left": 2.0, "right": 2.0}
        for name, size, score in sorted(rows, key=lambda row: -row[2]):
            lora = name.startswith("LoRA")
            axes.plot([size], [score], "o", color=BOTH if lora else SHIPPED, clip_on=False, zorder=3)
            # Neighbours have their names on different sides, by size.
            side = "left" if size < 5e3 or 5e4 < size < 1e6 else "right"
            at = lowest[side] = min(score, lowest[side] - APART)
            offset = 5.0 if side == "left" else -5.0
            axes.annotate(name, (size, at), (offset, -2.5), textcoords="offset points", fontsize=7, ha=side)
        axes.set_title(title)
        by_bytes(axes)
        axes.set_ylim(0, 1)
    figure.supxlabel("bytes of a user", fontsize=8.5)


def by_bytes(axes: Any) -> None:
    """Give axes a grid, and a horizontal axis of bytes, from those of 13 numbers to those of a large LoRA."""
    axes.set_xscale("log")
    axes.set_xticks([1e2, 1e4, 1e6], ["100 B", "10 kB", "1 MB"])
    axes.set_xlim(12, 5e7)
    axes.minorticks_off()
    axes.grid()


def users() -> Any:
    """Return [users, tokens a second, p95 of milliseconds to the first token] by server and law."""
    lines: dict[str, Any] = {}
    for server, counts in crowds().items():
        for law in ("uniform", "zipf"):
            # One user has a single record, which stands for both laws.
            found = [
                (n, laws.get(law, laws.get("zipf") if n == 1 else None)) for n, laws in sorted(counts.items())
            ]
            lines.setdefault(server, {})[law] = [[n, at["rate"], at["p95"]] for n, at in found if at]
    return rounded(lines)


def draw_users(figure: Any, data: Any) -> None:
    titles = "tokens a second", "first token, p95"
    for place, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True), 1):
        for server, laws in data.items():
            for law, rows in laws.items():
                dashes = {"uniform": "-", "zipf": "--"}[law]
                label = SERVERS[server] if law == "uniform" and place == 1 else None
                points = [row[0] for row in rows], [row[place] for row in rows]
                axes.plot(*points, f"o{dashes}", color=CROWDS[server], label=label, markersize=4)
        axes.set_title(title)
        axes.set_xlabel("users with a vector each; dashed: Zipf")
        axes.set_xscale("log")
        axes.set_xticks([1, 10, 100, 1e3, 1e4], ["1", "10", "100", "1,000", "10,000"])
        axes.set_ylim(0)
        axes.grid()
        if place == 2:
            axes.set_yscale("log")
            axes.set_ylim(100, 1e5)
            axes.set_yticks([100, 1e3, 1e4, 1e5], ["0.1 s", "1 s", "10 s", "100 s"])
        axes.minorticks_off()
    if data:
        figure.legend(loc="outside lower center", ncols=len(data))


def own() -> Any:
    """Return [what, bytes, mean gain on the shared vector, its error] of vectors and LoRAs, and the prompt's
    gain."""
    found, lines = messages(), dict[str, Any]()
    for arm, rows in found.items():
        if len(rows) > 1 and arm.startswith(("own", "shared-lora")) and "twice" not in arm:
            row, gained = next(iter(rows.values())), gains(rows)
            name = f"LoRA of rank {arm[12:]}" if "lora" in arm else f"{row['numbers']:,} numbers"
            line = lines.setdefault("LoRAs" if "lora" in arm else "vectors", [])
            line.append([name, row["bytes_int8"], statistics.mean(gained), between(gained)])
    return rounded({"lines": lines, "prompt": statistics.mean(gains(found["prompt-40"]))})


def draw_own(figure: Any, data: Any) -> None:
    axes = figure.subplots()
    for line, rows in data["lines"].items():
        names, sizes, means, errors = zip(*sorted(rows, key=lambda row: row[1]), strict=True)
        tone = BOTH if line == "LoRAs" else SHIPPED
        axes.errorbar(sizes, means, errors, color=tone, marker="o", capsize=2)
        for name, size, mean in zip(names, sizes, means, strict=True):
            axes.annotate(name, (size, mean), (-6, 5), textcoords="offset points", ha="right", fontsize=7)
    axes.axhline(data["prompt"], color=PROMPT, linestyle="--")
    at = 14, data["prompt"]
    axes.annotate("40 messages before each prompt", at, (0, 4), textcoords="offset points", fontsize=7)
    by_bytes(axes)
    axes.set_ylim(0)
    axes.set_xlabel("bytes of a user, int8")
    axes.set_title("nats a token better than the shared vector")


CROWDS = {"onnx": SHIPPED, "llama": BOTH, "stock": PROMPT}


def rounded(data: Any) -> Any:
    """Return the data with floats rounded to six decimals, as the last digits depend on the platform."""
    if isinstance(data, float):
        return round(data, 6)
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list | tuple) else data


EVIDENCE = {
    "evidence": EvidenceFigure(
        "Share of 128 held-out prompts answered as wanted, SmolLM2-135M", 3.1, scored, draw_scored
    ),
    "own": EvidenceFigure("A user's own vector, learned from 200 of their messages", 3.0, own, draw_own),
    "frontier": EvidenceFigure(
        "Slot F1 on SNIPS, and the bytes that a user costs", 3.3, frontier, draw_frontier
    ),
    "users": EvidenceFigure("What more users cost a server, 16 requests at a time", 3.1, users, draw_users),
}
