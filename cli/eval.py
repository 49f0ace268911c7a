"""`eval`: measure in the deployed model what a vector gains."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from tinylora_edge import TrainError
from tinylora_edge.jsonio import read_json
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, report, results, vectors
from . import options as opts

if TYPE_CHECKING:
    from tinylora_edge import MicroVector
    from tinylora_edge.tasks import Preamble, Task

_ANSWERS = 3  # prompts whose answers are printed


def evaluate(
    given: Annotated[
        list[str],
        Argument(
            metavar="BUNDLE DATA | RECORD...", help="A bundle and examples, or records of runs, *.json."
        ),
    ],
    vector: opts.VectorsOption = None,
    page: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Also write the report as an HTML page.")
    ] = None,
    reward: opts.RewardOption = None,
    schema: opts.SchemaOption = None,
    drop_duplicates: opts.DropDuplicatesOption = False,
    system: Annotated[str | None, Option(metavar="TEXT", help="Compare with this system prompt.")] = None,
    examples: Annotated[
        int | None, Option(metavar="K", min=1, help="Compare with K examples in the prompt.")
    ] = None,
    number: Annotated[int, Option("-n", metavar="N", min=2, help="Held-out prompts to measure on.")] = 128,
    max_tokens: Annotated[int | None, Option(metavar="N", min=1, help="Most tokens of an answer.")] = None,
    shifted: Annotated[bool, Option("--shifted", help="Measure on the shifted prompts instead.")] = False,
    drift: Annotated[bool, Option("--drift", help="Also measure the drift from the base.")] = False,
    engine: opts.EngineOption = None,
    threads: opts.ThreadsOption = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
    as_json: opts.JsonOption = False,
) -> None:
    """Measure a vector on held-out prompts in the deployed runtime, paired with the base.

    DATA is a file of examples, or the name of a built-in task. With several vectors, eval measures the last
    one on top of the others, and the others alone.

    With --system or --examples, it also measures the prompt that could replace the vector, alone and together
    with the vector.

    The drift says how far the vector moves the model from its base on general prompts that nobody trained on:
    in nats a token, and in the number of answers that now repeat themselves or are wrong.

    Given records, which train, tune and eval --json write, eval shows them together, and measures nothing.

    \b
    Examples:
      tinylora-edge eval out/demo list-lookup --vector lookup.bin
      tinylora-edge eval out/demo list-lookup --vector lookup.bin --system "One word." --examples 2
      tinylora-edge eval small.bin.json large.bin.json -o both.html
    """
    if page is not None:
        vectors.check_target(str(opts.file_needed(page)))
    if all(each.endswith(".json") for each in given):
        _draw(given, page, as_json)
        return
    if len(given) != 2:
        raise BadParameter(f"expected BUNDLE and DATA, or records that end in .json, not {len(given)} words")
    bundle, data = Path(given[0]), given[1]
    from tinylora_edge.eval import compare
    from tinylora_edge.eval.measure import Measuring, fitted
    from tinylora_edge.runtime.model import admit

    if drift and vector is None:
        raise BadParameter(
            "there is no vector whose drift could be measured: pass --vector", param_hint="--drift"
        )
    policy, user = keyfiles.policy(keys), bound_name(user)
    frames = vectors.read_stack(vector)
    limits: dict[str, Any] = {"held_out": number, "max_tokens": max_tokens}
    loaded = opts.load_data(data, reward=reward, schema=schema, drop_duplicates=drop_duplicates, **limits)
    loaded = _asked(loaded, number, shifted)
    before = opts.make_preamble(loaded, system, examples)
    record: dict[str, Any] = {"task": loaded.name, "split": "shifted" if shifted else "held_out"}
    if before:
        record["prompt"] = before.record()
    if frames[1:]:
        record["under"] = [sha256(frame).hexdigest() for frame in frames[:-1]]
    with (
        console.progress("loading the model", total=1) as show,
        closing(opts.load_model(bundle, engine, threads, policy=policy)) as llm,
    ):
        checked = admit(frames, llm.bases, policy, user=user) if frames else None
        loaded = loaded if max_tokens is not None else fitted(loaded, llm)
        size = len(frames[-1]) if frames else 0
        more: dict[str, Any] = {"n_threads": threads, "kept": number, "record": record}
        measuring = Measuring(llm, loaded, checked, size, console.measuring(show), **more)
        found = {name: measuring.arm(name, *each) for name, each in _arms(checked, before).items()}
        if drift:
            measuring.attempt("drift", partial(measuring.drift, None))
    for name, each in found.items():
        record["arms"][name]["scores"] = each.scores.tolist()
    pairs = itertools.combinations(found, 2)
    record["comparisons"] = {
        f"{name} - {one}": asdict(compare(found[one], found[name])) for one, name in pairs
    }
    if "vector - prompt" in record["comparisons"]:
        record["ahead"] = record["comparisons"]["vector - prompt"]
    if page is not None:
        report.write(page, {loaded.name: record})
    if as_json:
        console.print_json(record)
    else:
        _show(record)


def _asked(task: Task, number: int, shifted: bool) -> Task:
    """Return a task whose held-out prompts are the `number` that are measured on."""
    if shifted and not task.shifted:
        raise TrainError(f"task {task.name} has no shifted prompts: leave out --shifted")
    samples = (task.shifted if shifted else task.held_out)[:number]
    if len(samples) < number:
        why = f"task {task.name} has {len(samples)} such prompts, and -n is {number}"
        console.note(f"{why}: measuring on all {len(samples)}")
    return replace(task, held_out=samples)


def _arms(vector: MicroVector | None, prompt: Preamble) -> dict[str, tuple[Any, ...]]:
    """Return by arm the arguments of `Measuring.arm`: a vector, and perhaps what stands before prompts."""
    arms: dict[str, tuple[Any, ...]] = {"base": (None,)} | ({"prompt": (None, prompt)} if prompt else {})
    if vector is not None:
        arms |= {"beneath": (vector.under,)} if vector.under is not None else {}
        arms |= {"vector": (vector,)} | ({"vector + prompt": (vector, prompt)} if prompt else {})
    return arms


def _show(record: dict[str, Any]) -> None:
    console.grid(results.table(record))
    sign, _ = results.scale(record)
    rows = [("held-out prompts", str(record["arms"]["base"]["n"]))]
    rows += [(name, results.compared(each, sign)) for name, each in record["comparisons"].items()]
    console.facts([*rows, *results.rows(record)])
    names = results.arm_names(record)
    for i, row in enumerate(record.get("answers", ())[:_ANSWERS]):
        console.say()
        console.prose(f"prompt: {row['asked']}")
        for name, arm in record["arms"].items():
            console.prose(f"  {names[name]} ({sign * arm['scores'][i]:.3g}): {row[name].strip()}")


def _draw(files: list[str], page: Path | None, as_json: bool) -> None:
    """Show records of runs together, and write them as a page."""
    records: dict[str, Any] = {}
    for file in files:
        try:
            record = read_json(file)
        except ValueError as error:
            raise console.CommandError(f"{file} is not a record of a run: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("arms"), dict):
            raise console.CommandError(f'{file} is not a record of a measured run: it has no "arms"')
        name = Path(file).name.removesuffix(".json")
        records[file if name in records else name] = record
    if page is not None:
        report.write(page, records)
    if as_json:
        console.print_json(records)
        return
    console.grid(results.table(*records.values(), names=[*records]))
    for name, record in records.items():
        console.say()
        console.say(name)
        console.facts(results.rows(record))
