"""What ready-made llama.cpp libraries cost in speed, against those that were built for this processor.

Contestants are processes with the same bindings and other libraries, which are asked in turn: one token at a
time, and 32 in a batch, with one thread and with all cores.

    python benchmarks/engine.py --wheel .venv-try/lib/python3.11/site-packages/llama_cpp_py_sync
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
from _decoder import BATCH, Decoder
from _subjects import smollm2

from tinylora_edge.system import cores

BUILT, WHEEL = "built here", "ready-made"


def main() -> None:
    arguments = bench.parser(__doc__, rounds=10)
    arguments.add_argument("--wheel", type=Path, required=True, help="the folder of the ready-made libraries")
    options = arguments.parse_args()
    report = bench.Report("engine", options.json)
    report.record["results"] = results = {}
    for threads in sorted({1, cores()}):
        with ExitStack() as stack:
            asleep = {"OMP_WAIT_POLICY": "PASSIVE"}
            subjects = {
                BUILT: stack.enter_context(Decoder(smollm2(), threads, **asleep)),
                WHEEL: stack.enter_context(
                    Decoder(smollm2(), threads, LLAMA_CPP_LIB_PATH=str(options.wheel.resolve()), **asleep)
                ),
            }
            times: dict[str, dict[str, list[float]]] = {name: {"batch": [], "token": []} for name in subjects}
            for number in range(options.rounds):
                for name in sorted(subjects, reverse=bool(number % 2)):
                    answer = subjects[name].ask()
                    times[name]["batch"].append(answer["batch"])
                    times[name]["token"] += answer["tokens"]
        found = {name: {what: bench.summarize(each[what]) for what in each} for name, each in times.items()}
        results[threads] = found
        rows = [
            [f"{what}, {name}"]
            + [f"{count / found[name][what][key]:.1f}" for key in ("min", "median")]
            + [f"{found[BUILT][what][key] / found[name][what][key]:.2f}" for key in ("min", "median")]
            for what, count in (("token", 1), ("batch", BATCH))
            for name in found
        ]
        report.say()
        headers = [f"{threads} threads, tokens/s", "best", "median", "x built, best", "x built, median"]
        report.say(bench.table(headers, rows))
    report.finish()


if __name__ == "__main__":
    main()
