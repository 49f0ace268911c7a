"""A process that does what people do, when it is asked: `run`, a click (`tell`), a short `tune`.

It is asked as a `_decoder.Decoder`, and answers with seconds. What is timed begins when the model is loaded,
but for `run`, which is the command as it is typed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKS = "run", "tell", "tune"
TUNED_TOKENS = 8  # of an answer
BUDGET = "4ktokens"
QUESTION = "What is a river?"


def work(bundle: Path, threads: int) -> None:
    """Do what each line of stdin names, and print what it took."""
    from tinylora_edge import runtime

    llm: Any = runtime.load(
        bundle, engine="llama", n_ctx=64, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        learner = runtime.FeedbackLearner(
            llm, Path(folder) / "state", max_tokens=24, n_threads=threads, seed=0
        )
        with learner:
            works: dict[str, Callable[[], float]] = {
                "run": lambda: _run(bundle),
                "tell": lambda: _tell(learner),
                "tune": lambda: _tune(llm, threads),
            }
            for line in sys.stdin:
                print(json.dumps({"seconds": works[line.strip()]()}), flush=True)


def _run(bundle: Path) -> float:
    command = [sys.executable, "-c", "from tinylora_edge.cli import main; main()"]
    start = time.perf_counter()
    subprocess.run([*command, "run", str(bundle), QUESTION], check=True, capture_output=True)
    return time.perf_counter() - start


def _tell(learner: Any) -> float:
    answer = learner.ask([{"role": "user", "content": QUESTION}])
    start = time.perf_counter()
    learner.tell(answer, +1)
    return time.perf_counter() - start


def _tune(llm: Any, threads: int) -> float:
    from tinylora_edge import runtime

    prompts = [f"What is {thing}?" for thing in ("a lake", "a sea", "a bee", "a cat", "a dog", "an owl")]
    settings = runtime.TuneSettings(prompts=2)
    start = time.perf_counter()
    runtime.tune(
        llm,
        prompts,
        lambda completion, sample: float(len(completion.text) % 2),
        budget=BUDGET,
        seed=0,
        settings=settings,
        max_tokens=TUNED_TOKENS,
        n_threads=threads,
    )
    llm.clear()
    return time.perf_counter() - start


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
