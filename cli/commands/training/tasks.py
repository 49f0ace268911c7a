"""`tasks`: the tasks that can be trained for by name."""

from __future__ import annotations

from typing import Any

from ...shared import console
from ...shared.options import JsonOption


def tasks(as_json: JsonOption = False) -> None:
    """List the built-in tasks, each with what it asks for and a prompt that the model is measured on.

    A task of your own is a JSONL file: docs/TRAINING.md says what a line has.

    \b
    Examples:
      tinylora-edge tasks
      tinylora-edge train out/demo --task list-lookup -o lookup.bin
    """
    from ....tasks import BUILTIN

    records = [_record(name) for name in BUILTIN]
    if as_json:
        console.print_json(records)
        return
    for record in records:
        console.titled(record["name"], record["description"])
        prompt = " ".join(record["prompt"].split())
        console.indented(f"Q: {prompt}", 2)
        if record["answer"] is not None:
            console.indented(f"A: {' '.join(record['answer'].split())}", 2)
        console.say()
    console.next_command("tune", "BUNDLE", "--task", "brevity", "-o", "brief.bin")


def _record(name: str) -> dict[str, Any]:
    from ....tasks import load_task
    from ....tasks.descriptions import DESCRIPTIONS, GSM8K_EXAMPLE

    prompt: str = GSM8K_EXAMPLE
    answer: str | None = "36"
    if name != "gsm8k":
        (sample,) = load_task(name, train=1, held_out=1).held_out
        prompt, answer = sample.text, sample.answer
    return {"name": name, "description": DESCRIPTIONS[name], "prompt": prompt, "answer": answer}
