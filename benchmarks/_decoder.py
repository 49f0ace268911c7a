"""A process that decodes when it is asked, and the asking: engines with other libraries or variables each.

What an OpenMP library does is decided when it is loaded, so that contestants are processes. They are idle,
and their threads asleep, while another one is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

BATCH = 32  # tokens that are evaluated together: what a batch of so many sequences computes
TOKENS = 12
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "LLAMA_CPP_LIB_PATH")


class Decoder:
    """A process with a model of its own.

    Args:
        model: a GGUF file for plain llama_cpp, or a bundle for `runtime.load`.
        threads: of llama.cpp.
        python: that runs it; the one of this process by default.
        script: what it runs, with the model and the number of threads as arguments.
        variables: of its environment. Those that decide how threads wait are unset unless given.
    """

    def __init__(
        self,
        model: Path,
        threads: int,
        *,
        python: str = sys.executable,
        script: str = __file__,
        **variables: str,
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
        self._process = subprocess.Popen(
            [python, script, str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | variables,
            text=True,
        )

    def ask(self, what: str = "") -> dict[str, Any]:
        """Return the seconds of one batch and of each of some single tokens, or what the script measures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def keep_busy(self) -> None:
        """Decode for ever; nothing is asked any more."""
        assert self._process.stdin is not None
        self._process.stdin.write("for ever\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _decode(model: Path, threads: int) -> None:
    options: dict[str, Any] = {"n_ctx": 256, "n_threads": threads, "n_threads_batch": threads}
    if model.is_dir():
        from tinylora_edge import MicroVector, load_basis, runtime

        vector = MicroVector.random(load_basis(model / "basis.gguf"), 0.05, seed=0)
        llm: Any = runtime.load(model, vector, **options)
    else:
        import llama_cpp

        llm = llama_cpp.Llama(str(model), verbose=False, **options)

    def seconds(tokens: list[int]) -> float:
        start = time.perf_counter()
        llm.eval(tokens)
        return time.perf_counter() - start

    def once() -> dict[str, Any]:
        llm.reset()
        return {
            "batch": seconds(list(range(1000, 1000 + BATCH))),
            "tokens": [seconds([9]) for _ in range(TOKENS)],
        }

    once()
    for line in sys.stdin:
        while line.strip():
            once()
        print(json.dumps(once()), flush=True)


if __name__ == "__main__":
    _decode(Path(sys.argv[1]), int(sys.argv[2]))
