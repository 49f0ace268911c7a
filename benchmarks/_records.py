"""The records in benchmarks/results, which the evidence is made of: names in them, and how they are read."""

from __future__ import annotations

import math
import re
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded

RESULTS = Path(__file__).parent / "results"

TASKS = {
    "brevity": "guarded brevity",
    "list-lookup": "list lookup",
    "word-sums": "word sums",
    "formats": "formats",
    "tool-calls": "tool calls",
    "house-style": "house style",
}
PAPER = "default: r = 2, u = 1, G = 13, tiled"
LEARNED = "learned, as shipped"
FAR = "learned: n = 13, dense"
TITLES = {PAPER: "the paper's", LEARNED: "learned, as shipped", FAR: "learned far from all tasks"}
ALL = "u = 4, G = 210, int8 (855 bytes)"
DEVICE = {
    ("CMA-ES", "100ktokens"): "tune, 100,000 tokens, the paper's",
    ("CMA-ES, learned from 163 behaviours", "35ktokens"): "tune, 35,000, learned far from all tasks",
    ("CMA-ES, learned", "35ktokens"): "tune, 35,000, learned, as shipped",
    ("pairs", "random"): "20 pairs, the paper's",
    ("pairs", "learned"): "20 pairs, learned, as shipped",
}
"""Ways to find a vector on a device: search and budget in `tune.jsonl`, or method and projection in
`feedback.jsonl`."""
LIKED = {"brevity": "brief", "list-lookup": "correct"}
"""Task -> what simulated users like who want the same."""
PUBLIC_STEPS = {"snips": 80, "clinc": 100, "ifeval": 0}
"""Steps of the runs that the table of public data compares."""
LENGTHS = 1.25, 2.5
"""In runs that have no `fitted`, the length in R of a usual first step is between these."""
MESSAGES = 200  # messages that a user's own vector learns from, in tables
PAIRS, USERS_HELD_OUT = 20, 64  # pairs that a user clicks on, and prompts that their vector is measured on
WAYS = {PAPER: "13 numbers, the paper's", LEARNED: "13 numbers, learned", ALL: "840 numbers"}
"""Arms that figures compare."""
SERVERS = {
    "onnx": "ours, ONNX Runtime int4",
    "llama": "ours, llama.cpp Q4_1",
    "stock": "llama-server, a LoRA each",
    "base": "llama-server, no adapters",
}
"""The servers of `cliff.py`."""
PEOPLE_ARMS = {
    "base": "the base",
    "prompt-40": "40 messages before it",
    "shared-prompt-40": "40 before the shared vector",
    "other-rank-8": "another's own, 13,440 numbers",
    "own-rank-2, twice": "their own, 840, steps twice as long",
    "own-rank-8": "13,440",
    "own-rank-64x8": "107,520",
    "shared-lora-8": "a LoRA of rank 8",
}
"""Arms of `people.py` in tables and figures, in order."""
TEXTS_ARMS = {"texts-rank-2": "840 numbers", "texts-rank-8": "13,440", "texts-rank-64x8": "107,520"}
"""Arms of `people.py` that learn in full steps, by size."""
STEPS, HELD_OUT = 40, 128  # steps of a run with the usual settings, and prompts that it is measured on


@cache
def records(study: str) -> list[dict[str, Any]]:
    """Return the rows of a study, whose file is read once."""
    return bench.read_study(RESULTS / f"{study}.jsonl")


def runs(arm: str, task: str) -> list[dict[str, Any]]:
    """Return the runs of an arm with the usual settings, by seed."""
    wanted = (arm, task, STEPS, HELD_OUT)
    rows = records("learned_basis")
    found = [row for row in rows if (row["arm"], row["task"], row["settings"]["steps"], row["n"]) == wanted]
    return sorted(found, key=lambda row: int(row["seed"]))


def ways(task: str) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of a task by basis."""
    return {arm: runs(arm, task) for arm in TITLES}


def between(values: list[float]) -> float:
    """Return the standard error of the mean of values; 0 of one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def over_seeds(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Return the mean and the larger of two standard errors: over prompts, and between seeds.

    All seeds are measured on the same prompts, so more seeds do not make the error over prompts smaller. The
    error between seeds may be small by chance.
    """
    values = [float(row[key]) for row in rows]
    mean = statistics.mean(values)
    return mean, max(between(values), math.sqrt(mean * (1 - mean) / rows[0]["n"]))


def trained() -> dict[str, str]:
    """Return the titles of the tasks that have runs in the shipped directions, by task."""
    return {task: title for task, title in TASKS.items() if runs(LEARNED, task)}


def prompts() -> dict[str, dict[str, Any]]:
    """Return the record of the search for a prompt by task, the thorough one where there are two."""
    rows = records("prompts")
    return {
        row["task"]: row for kind in ("quick", "thorough") for row in rows if row["search"]["kind"] == kind
    }


def contestant(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((each for each in row["contestants"] if each["name"] == name), None)


def best_prompt(task: str) -> tuple[dict[str, Any] | None, str]:
    """Return the scores of a task's best prompt, and a remark on how many were tried if these were few."""
    row = prompts().get(task)
    if row is None:
        return None, ""
    quick = row["search"]["kind"] == "quick"
    return contestant(row, "prompt" if quick else "best prompt"), (
        f" (of {row['search']['tried']})" if quick else ""
    )


def public(name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of a public set by name, each a list over seeds.

    A name has the arm, and what differs from the usual: another model, another number of steps or utterances,
    a longer or shorter first step in R of a vector, answers held to a schema. A LoRA has one step size: of
    those with most seeds, the one with the largest mean F1.
    """
    found: dict[str, dict[float | None, list[dict[str, Any]]]] = {}
    for row in records("public"):
        if row["set"] != name:
            continue
        arm, steps, more = row["arm"], row["steps"], list[str]()
        if kept := re.fullmatch(rf"{name}-(.+)-(\d+)-s\d+\.bin", arm):
            arm, steps = kept[1], int(kept[2])
        if "losses" in row or kept:
            more += [f"{steps} steps"] * (steps != PUBLIC_STEPS[name])
            more += [f"{row['samples']:,} utterances"] * (row["each"] != 70)
            more += ["own step size"] * bool(row.get("fitted"))
            if arm.startswith("rank") and not row.get("fitted"):
                length = row.get("lr", math.inf) * row["numbers"] ** 0.5  # vectors' files have long steps
                more += ["long steps"] * (length > LENGTHS[1]) + ["short steps"] * (length < LENGTHS[0])
        more += ["held to a schema"] * bool(row.get("held"))
        more += [re.split("[-.]q", row["model"])[0]] * (not row["model"].startswith("SmolLM2"))
        step_size = row["lr"] if arm.startswith("lora") else None
        found.setdefault(", ".join([arm, *more]), {}).setdefault(step_size, []).append(row)
    return {arm: max(sizes.values(), key=_seeds_and_f1) for arm, sizes in found.items()}


def _seeds_and_f1(rows: list[dict[str, Any]]) -> tuple[int, float]:
    return len(rows), statistics.mean(row.get("slot_f1", 0.0) for row in rows)


def titled(arm: str) -> str:
    """Return the title of a run of a public set in tables and figures."""
    first, *more = arm.split(", ")
    kind, _, size = first.partition("-")
    size = re.sub(r"-q(\d)", r" in \1 bits", size).replace(" 1 bits", " 1 bit")
    title = {
        "rank": f"rank {size}",
        "plain": f"rank {size}, plain steps",
        "white": f"rank {size}, whitened steps",
        "keep": f"rank {size} with --keep",
        "learned": f"{size} numbers",
        "lora": f"LoRA of rank {size}",
        "base": "the base",
        "functions": "the functions in its prompt",
        "shots": "best worked examples",
        "tf": f"TF-IDF of {int(size[4:]):,}" if size[4:].isdigit() else "TF-IDF",
    }.get(kind, first.removesuffix("_metrics"))
    return ", ".join([title, *more])


def messages() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the records of `people.py` after `MESSAGES`, by arm and user.

    Of a LoRA's step sizes they have the one that most users have. Vectors have the default one, or `twice`
    that.
    """
    found: dict[str, dict[float | None, dict[str, dict[str, Any]]]] = {}
    for row in records("people"):
        if row["n"] in (None, MESSAGES):
            twice = row["arm"].startswith("own") and row["lr"] is not None
            arm = f"{row['arm']}, twice" if twice else row["arm"]
            found.setdefault(arm, {}).setdefault(row["lr"], {})[row["user"]] = row
    return {arm: max(sizes.values(), key=len) for arm, sizes in found.items()}


def gains(rows: dict[str, dict[str, Any]]) -> list[float]:
    """Return how many nats a token better than the shared vector each user's row of `messages` is."""
    shared = messages()["shared"]
    return [shared[user]["nats"] - row.get("int8", row)["nats"] for user, row in rows.items()]


def found_on_device(task: str, way: tuple[str, str]) -> list[float]:
    """Return the gains of a task's vectors that a device found in one way of `DEVICE`, by seed or user."""
    how, what = way
    if how != "pairs":
        rows = records("tune")
        wanted = (how, task, what, "Q4_1", HELD_OUT)
        keys = ("arm", "task", "budget", "weights", "n")
        return [row["difference"] for row in rows if tuple(row[key] for key in keys) == wanted]
    rows = [
        row
        for row in records("feedback")
        if row["preference"] == LIKED.get(task) and row.get("prior", True) and row["n"] == USERS_HELD_OUT
    ]
    base = next((row["liked"] for row in rows if row["method"] == "base"), 0.0)
    clicked = (how, what, PAIRS)
    return [
        row["liked"] - base
        for row in rows
        if (row["method"], row.get("projection", "random"), row["clicks"]) == clicked
    ]


def crowds(rows: list[dict[str, Any]] | None = None) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """Return what `cliff.py` measured, by server, number of users, and law by which they ask.

    Args:
        rows: of its record; by default those in results.

    Returns:
        Medians over turns: `rate`, tokens a second, and `share`, the ratio to the rate of 16 users in the
        same round. `p50` and `p95` of all requests: milliseconds to the first text. `peak`: bytes of the
        server.
    """
    turns = [row for row in (records("cliff") if rows is None else rows) if "law" in row]
    of_16 = {_turn(row): row["tokens_per_second"] for row in turns if row["users"] == 16}
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for server, users, law in dict.fromkeys((row["server"], row["users"], row["law"]) for row in turns):
        mine = [row for row in turns if (row["server"], row["users"], row["law"]) == (server, users, law)]
        first = sorted(each for row in mine for each in row["first_ms"])
        shares = [row["tokens_per_second"] / of_16[_turn(row)] for row in mine if _turn(row) in of_16]
        found.setdefault(server, {}).setdefault(users, {})[law] = {
            "rate": statistics.median(row["tokens_per_second"] for row in mine),
            "share": statistics.median(shares) if shares else math.nan,
            "p50": statistics.median(first),
            "p95": first[int(0.95 * (len(first) - 1))],
            "peak": max(row["peak"] for row in mine),
        }
    return found


def _turn(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what turns have in common whose rates are compared: server, law, round and run."""
    return row["server"], row["law"], str(row["round"]), row["run"]
