"""Standings: the tables of a contest, as they fit a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from . import console, training

if TYPE_CHECKING:
    from ..runtime import Contest, Duel, PromptSearch

_WIDTH = 80


def print_standings(found: Contest, vector: str | None, searched: PromptSearch | None = None) -> None:
    """Print rewards, what the vector does beside each other contestant, costs, and the prompts.

    Args:
        found: the contest.
        vector: name of the vector alone, where it took part.
        searched: the search that found a prompt.
    """
    console.print_table(_rewards(found))
    if vector is not None:
        console.say()
        console.print_table(_beside(found, vector))
    console.say()
    console.print_table(_costs(found))
    if any(standing.cost.first_token_s is not None for standing in found.standings):
        console.prose(
            "Times are this machine's, medians of single requests, by turns. again: right after another "
            "request, whose beginning the engine has not forgotten."
        )
    for standing in found.standings:
        each = standing.contestant
        found_here = searched is not None and each.preamble == searched.best.preamble
        alone = each.vector is None and each.lora is None and standing is not found.standings[0]
        if alone and (each.preamble or found_here):
            console.say()
            console.prose(f"{each.name}: {training.prompt_text(each.preamble)}")
            if searched is not None and found_here:
                console.prose(describe(searched))


def print_prompt(search: PromptSearch, duel: Duel) -> None:
    """Print a prompt that was found for a vector's task, and the vector over it.

    Args:
        search: that found it, and measured it on the held-out prompts.
        duel: of the prompt and the vector, on those.
    """
    if search.held_out is None:
        return
    mean = f"{search.held_out.mean:.3f} +- {_figure(search.held_out.standard_error)}"
    console.facts(
        [
            ("a prompt", f"{mean}, with {search.best.prompt_tokens:.0f} tokens a request"),
            ("", training.prompt_text(search.best.preamble)),
            ("", describe(search)),
            ("vector over it", f"{difference(duel)}, paired, {test(duel)}"),
        ]
    )


def describe(search: PromptSearch) -> str:
    """Return in a line how a prompt was found."""
    return (
        f"the best of {len(search.trials)} on up to {search.validation} training prompts, "
        f"{search.answers:,} answers, {search.seconds:.0f} s"
    )


def difference(duel: Duel) -> str:
    """Return a paired difference with its standard error."""
    return f"{duel.comparison.difference:+.3f} +- {_figure(duel.comparison.standard_error)}"


def test(duel: Duel) -> str:
    """Return McNemar's p, or the bootstrap's interval where rewards are no 0 and 1."""
    if duel.interval is None:
        return f"p = {duel.comparison.p:.2g}"
    return f"{duel.interval[0]:+.3f} to {duel.interval[1]:+.3f}"


def _rewards(found: Contest) -> Table:
    n = found.standings[0].evaluation.n
    table = _table(f"rewards on {n} held-out prompts", ("mean", "over the base", _test_name(found)))
    for standing in found.standings:
        name, evaluation = standing.contestant.name, standing.evaluation
        mean = f"{evaluation.mean:.3f} +- {_figure(evaluation.standard_error)}"
        if standing is found.standings[0]:
            _row(table, name, mean, "", "")
        else:
            duel = found.duel(found.standings[0].contestant.name, name)
            _row(table, name, mean, difference(duel), test(duel))
    return table


def _beside(found: Contest, vector: str) -> Table:
    table = _table("what the vector does", ("difference", _test_name(found)))
    names = {standing.contestant.name for standing in found.standings}
    for standing in found.standings[1:]:
        name = standing.contestant.name
        if standing.contestant.vector is not None:
            continue
        pairs = [(f"{vector}, over {name}", found.duel(name, vector))]
        if f"{vector} + {name}" in names:
            pairs.append((f"{vector} + {name}, over {name}", found.duel(name, f"{vector} + {name}")))
        for label, duel in pairs:
            _row(table, label, difference(duel), test(duel))
    return table


def _costs(found: Contest) -> Table:
    heads = (
        "prompt\ntokens",
        "first\ntoken",
        "\nagain",
        "tokens\na s",
        "bytes\nsent",
        "in the\napp",
        "made\nin",
    )
    table = _table("what it costs", heads, padding=1)
    for standing in found.standings:
        cost = standing.cost
        _row(
            table,
            standing.contestant.name,
            f"{cost.prompt_tokens:.0f}",
            _milliseconds(cost.first_token_s),
            _milliseconds(cost.next_first_token_s),
            "" if cost.tokens_per_s is None else f"{cost.tokens_per_s:.1f}",
            f"{cost.sent:,}",
            f"{cost.shipped:,}",
            "" if cost.making_s is None else f"{cost.making_s:.0f} s",
        )
    return table


def _table(title: str, heads: Sequence[str], padding: int = 2) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, padding, 0, 0))
    table.add_column("", overflow="fold", ratio=1)
    narrow = console.width() < _WIDTH
    for head in heads:
        table.add_column(head, justify="right", overflow="fold", no_wrap=not narrow)
    table.width = min(_WIDTH, console.width())
    return table


def _row(table: Table, name: str, *cells: str) -> None:
    table.add_row(Text(console.harmless(name)), *cells)


def _test_name(found: Contest) -> str:
    return "95 % interval" if any(duel.interval for duel in found.duels()) else "McNemar"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f} ms"


def _figure(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.3f}"
