"""What a search for the best prompt finds on each task, what that prompt costs, and vectors beside it.

`tinylora-edge eval --against` does the work; this keeps what it found, a line a task, without the answers.
A task that is there already is not searched again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded

SEARCHES = {"quick": "prompt", "thorough": "best-prompt"}
"""A name of a search -> what `eval --against` takes."""


def compact(found: dict[str, Any], search: str) -> dict[str, Any]:
    """Return what a record of `eval --json` says, without answers and scores by prompt."""
    kept = ("name", "vector", "n", "mean", "standard_error", "cost")
    looked = {key: found["search"][key] for key in ("tried", "answers", "validation", "seconds")}
    return {
        "task": found["task"],
        "search": {"kind": search, **looked},
        "best": found["search"]["best"],
        "contestants": [{key: each[key] for key in kept} for each in found["against"]["contestants"]],
        "duels": found["against"]["duels"],
    }


def measure(task: str, vector: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Search and measure in a process of its own."""
    command = [
        sys.executable,
        "-Pc",
        "from tinylora_edge.cli import main; main()",
        "eval",
        str(options.bundle),
    ]
    command += ["--task", task, "--against", SEARCHES[options.search], "--json", "--show", "0"]
    command += ["--vector", vector] if vector else []
    command += ["-n", str(options.held_out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return compact(json.loads(done.stdout), options.search)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("bundle", type=Path, metavar="BUNDLE")
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--study", type=Path, metavar="FILE", help="what was found, kept and gone on with")
    arguments.add_argument("--tasks", nargs="+", default=["brevity", "list-lookup"], metavar="TASK[=VECTOR]")
    arguments.add_argument("--search", choices=SEARCHES, default="thorough", help="(%(default)s)")
    arguments.add_argument("--held-out", type=int, default=128, help="prompts measured on (%(default)s)")
    options = arguments.parse_args()
    report, rows = bench.Report("prompts", options.json), list[dict[str, Any]]()
    for asked in options.tasks:
        task, _, vector = asked.partition("=")
        known = [
            row
            for row in bench.read_study(options.study)
            if (row["task"], row["search"]["kind"]) == (task, options.search)
        ]
        if not known:
            row = measure(task, vector or None, options)
            row |= {"commit": bench.commit(), "versions": bench.environment()["versions"]}
            if options.study:
                bench.keep(options.study, row)
            known = [row]
        rows.append(known[-1])
    table = [
        [
            row["task"],
            each["name"],
            f"{each['mean']:.3f} +- {each['standard_error']:.3f}",
            f"{each['cost']['prompt_tokens']:.0f}",
            f"{each['cost']['first_token_s'] * 1e3:.0f} ms",
        ]
        for row in rows
        for each in row["contestants"]
    ]
    report.say(bench.table(["task", "asked by", "score", "tokens of a prompt", "first token, cold"], table))
    report.record |= {"runs": rows}
    report.finish()


if __name__ == "__main__":
    main()
