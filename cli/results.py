"""What was measured of a vector, for reading: its record becomes a table of arms and labelled facts."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from .. import TinyLoraError
from . import console


def compared(found: Any) -> str:
    """Return a paired comparison for reading: a `Comparison`, or a record with its figures."""
    return (
        f"{found.difference:+.3f}{_error(found)}, paired: "
        f"{console.counted(found.gained, 'prompt')} gained, {found.lost} lost, McNemar p = {found.p:.2g}"
    )


def verdict(found: Any, what: str) -> str:
    """Return what a paired comparison shows, and no more than that."""
    if found.standard_error is None or not abs(found.difference) > 2 * found.standard_error:
        return "The difference is within two standard errors: it may be chance."
    change = "raises" if found.difference > 0 else "lowers"
    return f"The vector {change} the {what}, beyond two standard errors."


def table(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the arms that the record of a run compares, for reading: a header, then a row an arm."""
    arms, (sign, unit) = record.get("arms", {}), _scale(record)
    examples = record.get("prompt", {}).get("examples", ())
    kind = "worked example" if any(each["question"] for each in examples) else "earlier text"
    prompt = console.counted(len(examples), kind) if examples else "prompt"
    names = {"base": "base", "beneath": "what lies beneath", "prompt": prompt, "vector": "vector"}
    names["vector + prompt"] = f"vector + {prompt}"
    better = "" if sign > 0 else ", less is better"
    near = ("in part",) if any("partial" in arm for arm in arms.values()) else ()
    found: list[tuple[str, ...]] = [("", f"{unit}{better}", *near, "tokens a request", "bytes a user")]
    for name in [each for each in names if each in arms]:
        arm = SimpleNamespace(**arms[name])
        scores = [f"{sign * arm.mean:.3f}{_error(arm)}", *(f"{arm.partial:.3f}" for _ in near)]
        found.append((names[name], *scores, f"{arm.tokens:.0f}", f"{arm.bytes:,}"))
    return found if arms else []


def show(record: dict[str, Any]) -> None:
    """Print what the record of a run says of its vector."""
    console.grid(table(record))
    console.facts(rows(record))


def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the record of a run says of its vector beside `table`: gain, drift, and more."""
    found, (sign, unit) = [], _scale(record)
    base = "beneath" if "under" in record or "beneath" in record.get("arms", ()) else "base"
    if "held_out" in record:
        held = SimpleNamespace(**record["held_out"])
        if "arms" not in record:
            error = _error(held, "base_standard_error")
            found.append((base, f"{sign * held.base:.3f}{error} (n = {held.n}, held out)"))
            error = _error(held, "vector_standard_error")
            found.append(("vector", f"{sign * held.vector:.3f}{error}"))
        held.difference *= sign
        difference = f"{compared(held)} (n = {held.n}, held out)"
        found += [(f"vector - {base}", difference), ("", verdict(held, unit))]
    if "prompt" in record:
        tried = console.counted(len(record["prompt"]["tried"]), "draw")
        found.append(("examples", f"from the training prompts, the best of {tried} on held-back ones"))
    arms = record.get("arms", {})
    if "prompt" in arms and arms["prompt"]["mean"] > arms["vector"]["mean"]:
        found.append(("", "They do better than the vector: take them, or give more examples or --minutes."))
    if "drift" in record:
        drift = SimpleNamespace(**record["drift"])
        away = "the base" if base == "base" else "what lies beneath"
        where = f"from {away} on {console.counted(drift.prompts, 'general prompt')}"
        faults = f"{drift.repeating['new']} answers repeat themselves now, {drift.wrong['new']} are wrong now"
        found.append(("drift", f"{drift.kl:.3f}{_error(drift)} nats a token {where}; {faults}"))
    if "preamble" in record:
        behind = (
            "base and vector stand behind a prompt, which belongs to the vector: put it before every request"
        )
        found.append(("preamble", behind))
    unmeasured = record.get("unmeasured", {})
    for why in dict.fromkeys(unmeasured.values()):
        found.append(("not measured", f"{', '.join(w for w in unmeasured if unmeasured[w] == why)}: {why}"))
    return found


def drift(llm: Any, vector: Any, **options: Any) -> Any:
    """Return the `Drift` that `measure_drift` finds. Where it fails, warn and return None: scores stay."""
    from ..eval import measure_drift

    try:
        return measure_drift(llm, vector, **options)
    except TinyLoraError as error:
        console.warn(f"the drift on general prompts was not measured: {error}")
        return None


def phases(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what each method of a run brought, for reading."""
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


def _scale(record: dict[str, Any]) -> tuple[int, str]:
    """Return what a score is multiplied by for reading, and its unit: nats are minus the score."""
    unit = record.get("unit")
    return (1, "reward") if unit is None else (-1, str(unit))


def _error(found: Any, name: str = "standard_error") -> str:
    """Return a standard error for reading; nothing where it is of one prompt, and so none."""
    error = getattr(found, name)
    return "" if error is None or math.isnan(error) else f" +- {error:.3f}"
