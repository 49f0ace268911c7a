"""Records of measurements as text: a table of arms, and labelled facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from . import console

ANSWERS = 10
"""Answers that a report shows."""


def compared(record: dict[str, Any], sign: int) -> str:
    """Return the record of a paired comparison as text; `sign` is that of `scale`."""
    found = SimpleNamespace(**record)
    return (
        f"{sign * found.difference:+.3f}{_error(found)}, paired: "
        f"{console.counted(found.gained, 'prompt')} gained, {found.lost} lost, McNemar p = {found.p:.2g}"
    )


def verdict(found: Any, what: str) -> str:
    """Return a sentence on what a paired comparison shows, and no more than that."""
    if not _sure(found):
        return "The difference is within two standard errors: it may be chance."
    change = "raises" if found.difference > 0 else "lowers"
    return f"The vector {change} the {what}, beyond two standard errors."


def _sure(found: Any) -> bool:
    """Return whether a paired difference is beyond two standard errors; one pair alone has no error."""
    return found.standard_error is not None and abs(found.difference) > 2 * found.standard_error


def table(*records: dict[str, Any], names: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return the arms of records as a table: a header, then a row for each arm. With several records, their
    `names` are in the first column."""
    units = {scale(record) for record in records}
    if len(units) > 1:
        raise console.CommandError("some records have rewards, others nats a token: draw them apart")
    (sign, unit) = units.pop()
    arms = [arm for record in records for arm in record.get("arms", {}).values()]
    near = ("in part",) if any("partial" in arm for arm in arms) else ()
    better = "" if sign > 0 else ", less is better"
    first = ("record",) if names else ()
    found: list[tuple[str, ...]] = [
        (*first, "", f"{unit}{better}", *near, "tokens a request", "bytes a user")
    ]
    for number, record in enumerate(records):
        called = arm_names(record)
        for name in [each for each in called if each in record.get("arms", {})]:
            arm = SimpleNamespace(**record["arms"][name])
            score = f"{sign * arm.mean:.3f}{_error(arm)}"
            parts = [f"{getattr(arm, 'partial', math.nan):.3f}".replace("nan", "") for _ in near]
            row = (called[name], score, *parts, f"{arm.tokens:.0f}", f"{arm.bytes:,}")
            found.append((*names[number : number + 1], *row))
    return found if arms else []


def arm_names(record: dict[str, Any]) -> dict[str, str]:
    """Return the titles of the arms that a record may have, by arm and in order."""
    prompt = record.get("prompt", {})
    examples = prompt.get("examples", ())
    texts = any(not each["question"] for each in examples)
    kind = "earlier text" if texts else "example" if prompt.get("system") else "worked example"
    parts = ["instruction"] if prompt.get("system") else []
    called = " + ".join([*parts, *([console.counted(len(examples), kind)] if examples else [])]) or "prompt"
    names = {"base": "base", "beneath": "what lies beneath", "prompt": called, "vector": "vector"}
    return names | {"vector + prompt": f"vector + {called}"}


def show(record: dict[str, Any]) -> None:
    """Print the figures in a run's record."""
    console.grid(table(record))
    console.facts(rows(record))


def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures in a run's record that `table` does not have, as labelled facts."""
    found, (sign, unit) = [], scale(record)
    base = "beneath" if "under" in record or "beneath" in record.get("arms", ()) else "base"
    if "held_out" in record:
        held = SimpleNamespace(**record["held_out"])
        difference = f"{compared(record['held_out'], sign)} (n = {held.n}, held out)"
        held.difference *= sign
        found += [(f"vector - {base}", difference), ("", verdict(held, unit))]
    if tried := record.get("prompt", {}).get("tried"):
        count = console.counted(len(tried), "prompt")
        about = "its instruction and examples are made of the training prompts"
        found.append(("prompt", f"the best of {count} on held-back ones; {about}"))
    if "drift" in record:
        drift = SimpleNamespace(**record["drift"])
        away = "the base" if base == "base" else "what lies beneath"
        where = f"from {away} on {console.counted(drift.prompts, 'general prompt')}"
        faults = f"{drift.repeating['new']} answers repeat themselves now, {drift.wrong['new']} are wrong now"
        if hasattr(drift, "changed"):
            faults = f"{drift.changed} answers differ, {faults}"
        found.append(("drift", f"{drift.kl:.3f}{_error(drift)} nats a token {where}; {faults}"))
    if "preamble" in record:
        behind = (
            "base and vector stand behind a prompt, which belongs to the vector: put it before every request"
        )
        found.append(("preamble", behind))
    unmeasured = record.get("unmeasured", {})
    for why in dict.fromkeys(unmeasured.values()):
        found.append(("not measured", f"{', '.join(w for w in unmeasured if unmeasured[w] == why)}: {why}"))
    return [*found, *_unfinished(record, sign, unit), *_ahead(record, unit)]


def _unfinished(record: dict[str, Any], sign: int, unit: str) -> list[tuple[str, str]]:
    """Return what the last half of its steps brought, of a run that ended while it still gained; else []."""
    phases = [phase for phase in record.get("result", {}).get("phases", ()) if phase.get("gaining")]
    if not phases:
        return []
    method, best = phases[-1]["method"], phases[-1]["best_step"]
    curve = [row for row in record["curve"] if row.get("method") == method and "validation" in row]
    end = curve[-1]  # its step is counted from the beginning of the run
    half = [row for row in curve if row.get("step", 0) <= end["step"] - best / 2][-1]
    key = "validation"
    if half[key] == end[key] and "validation_loss" in end:
        key, sign, unit = "validation_loss", 1, "nats a token"
    gained = f"{sign * half[key]:.3f} -> {sign * end[key]:.3f} {unit} on held-back prompts"
    last = end["step"] - half.get("step", end["step"] - best)
    why = f"the budget ended while {method.upper()} still gained: in its last {last} steps"
    return [("go on", f"{why} {gained}. --start {record.get('file', 'FILE')} trains on")]


def _ahead(record: dict[str, Any], unit: str) -> list[tuple[str, str]]:
    """Return whether the vector or the prompt is ahead, and how sure that is; [] if not measured."""
    if "ahead" not in record:
        return []
    found = SimpleNamespace(**record["ahead"])
    name, other = ("vector", "prompt") if found.difference > 0 else ("prompt", "vector")
    by = f"by {abs(found.difference):.3f}{_error(found)} {unit} (paired, p = {found.p:.2g})"
    if _sure(found):
        text = f"the {name} is ahead of the {other} {by}, beyond two standard errors"
    elif found.difference:
        text = f"neither for sure: the {name} is ahead {by}, within two standard errors, which may be chance"
    else:
        text = "neither: vector and prompt do equally well"
    more = ". Take the prompt, or give more examples or --minutes" if name == "prompt" else ""
    return [("ahead", f"{text}{more if found.difference else ''}")]


def phases(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of each method of a run, as labelled facts."""
    found = []
    for each in (SimpleNamespace(**phase) for phase in record["result"].get("phases", ())):
        if each.method == "texts":
            losses = (
                f"{each.start_loss:.3f} -> {each.best_loss:.3f} nats a token of them, before the last step"
            )
            found.append(("texts", f"{each.steps} full steps, {each.seconds:.0f} s, {losses}"))
            continue
        text = f"{console.counted(each.steps, 'step')}, {each.seconds:.0f} s, held back "
        if record.get("data", {}).get("reward") == "text":
            text += f"{-each.start_score:.3f} -> {-each.best_score:.3f} nats a token"
        else:
            text += f"{each.start_score:.3f} -> {each.best_score:.3f}"
            if each.start_loss is not None:
                text += f", loss {each.start_loss:.3f} -> {each.best_loss:.3f} nats a token"
        if each.temperature is not None:
            text += f", temperature {each.temperature}"
        if each.why is not None:
            text = f"left out: {each.why}" if not each.steps else f"{text}. Left out: {each.why}"
        found.append((each.method, text))
    return found


def scale(record: dict[str, Any]) -> tuple[int, str]:
    """Return the factor with which scores are shown, and their unit: nats a token are minus the score."""
    unit = record.get("unit")
    return (1, "reward") if unit is None else (-1, str(unit))


def _error(found: Any) -> str:
    """Return a standard error as text; "" where a single prompt has none."""
    error = found.standard_error
    return "" if error is None or math.isnan(error) else f" +- {error:.3f}"
