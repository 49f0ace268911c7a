"""One process of a launch: trains three times, and leaves what it ended with in files of its own.

Run by torchrun with the folder of `test_trl.prepare` and the arguments of a recipe's run; the test calls
`fixed_run` in one process.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tinylora_edge import MicroVector, TrainError
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Options, Outcome
from tinylora_edge.train import trl as engine
from tinylora_edge.train.peft_adapter import vector_of

LIMIT, END = 6, 257


def letters(completion: Completion, sample: Sample) -> float:
    """Share of ASCII letters in the answer."""
    return sum(c.isascii() and c.isalpha() for c in completion.text) / max(len(completion.text), 1)


def letters_task() -> Task:
    prompts = [Sample(({"role": "user", "content": f"say {i}"},), f"answer {i}") for i in range(56)]
    return Task("letters", prompts[:48], prompts[48:], letters, max_tokens=LIMIT, temperature=1.0)


def options(folder: Path) -> Options:
    return Options(
        steps=4,
        prompts=3,
        samples=4,
        lr=0.2,
        validation=8,
        validate_every=2,
        seed=1,
        weights=str(folder / "weights"),
        dtype="fp32",
        workers=1,
        sequences=8,
        evaluate=False,
    )


def completions(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """The completions of a batch, by prompt and place in the group alone: the same however it is shared out.

    They differ in length, so that the losses of a group do not cancel.
    """
    each = trainer.num_generations if trainer.model.training else 1
    first = trainer.accelerator.process_index * len(prompts)
    drawn = []
    for place, prompt in enumerate(prompts, first):
        rng = np.random.default_rng([*prompt[0]["content"].encode(), place % each])
        length = int(rng.integers(1, LIMIT + 1))
        drawn.append([*rng.integers(32, 127, length - 1).tolist(), END])
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": drawn, "logprobs": None}


def fixed_run(folder: Path, output: Path, rows: list[dict[str, Any]]) -> Any:
    """Train on given completions, with a KL term; returns TRL's trainer."""
    made = []

    class Recorded(engine.GRPOTrainer):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, rollout_func=completions)
            made.append(self)

    before, engine.GRPOTrainer = engine.GRPOTrainer, Recorded
    try:
        chosen = {"options": options(folder), "grpo": {"beta": 0.1}}
        engine.train_trl(folder / "bundle", letters_task(), output, **chosen, report=rows.append)
    finally:
        engine.GRPOTrainer = before
    return made[0]


def sampled_run(folder: Path, output: Path) -> Outcome:
    """Train as users do: completions are drawn by the model that learns."""
    return engine.train_trl(folder / "bundle", letters_task(), output, options=options(folder))


def main() -> None:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    trainer = fixed_run(folder, folder / "fixed.bin", [])
    (folder / f"fixed.{rank}").write_bytes(vector_of(trainer.model).values.tobytes())
    outcome = sampled_run(folder, folder / "sampled.bin")
    (folder / f"sampled.{rank}").write_bytes(outcome.result.vector.values.tobytes())
    try:
        engine.check_agreement(MicroVector(np.full((13, 1), 1 + float(rank))))
    except TrainError as error:
        (folder / f"apart.{rank}").write_text(str(error))
    # last, and as `accelerate launch -m` starts it: it ends the process group, and the process
    sys.argv = ["tinylora_edge.train.recipes", *sys.argv[2:]]
    runpy.run_module("tinylora_edge.train.recipes", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
