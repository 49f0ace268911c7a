"""`eval`: prove in the deployed runtime that a vector helps."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from tinylora_edge import TrainError
from tinylora_edge.jsonio import read_json
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, report, results, vectors
from . import options as opts

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
        Path | None, Option("--output", "-o", metavar="FILE", help="Write the report as a page, HTML.")
    ] = None,
    reward: opts.RewardOption = None,
    schema: opts.SchemaOption = None,
    drop_duplicates: opts.DropDuplicatesOption = False,
    system: Annotated[str | None, Option(metavar="TEXT", help="Compare with a system prompt.")] = None,
    examples: Annotated[int | None, Option(metavar="K", min=1, help="Compare with K examples.")] = None,
    number: Annotated[int, Option("-n", metavar="N", min=2, help="Held-out prompts.")] = 128,
    max_tokens: Annotated[int | None, Option(metavar="N", min=1, help="Tokens of an answer.")] = None,
    shifted: Annotated[bool, Option("--shifted", help="Use the task's shifted prompts.")] = False,
    drift: Annotated[bool, Option("--drift", help="Also measure how far from the base it is.")] = False,
    engine: opts.EngineOption = None,
    threads: opts.ThreadsOption = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
    as_json: opts.JsonOption = False,
) -> None:
    """Measure a vector on held-out prompts in the deployed runtime, paired with the base.

    DATA is a file of examples, or the name of a built-in task. Of several vectors the last one is measured on
    top of the others, and these are measured without it.

    With --system or --examples it also measures the prompt that could take the vector's place, alone and
    together with the vector.

    The drift is how far the vector moves the model from its base on general prompts that nobody trained on:
    in nats, and in answers that begin to repeat themselves or to be wrong.

    Records, which train, tune and eval --json write, are drawn together: nothing is measured anew.

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
    from tinylora_edge.eval import Evaluation, compare
    from tinylora_edge.eval import evaluate as measure
    from tinylora_edge.eval.measure import arm, fitted, keep_answers
    from tinylora_edge.runtime.model import admit
    from tinylora_edge.tasks import Preamble, rewards
    from tinylora_edge.tasks.load import load_general

    if drift and vector is None:
        raise BadParameter("the drift is of a vector: name it with --vector", param_hint="--drift")
    policy, user = keyfiles.policy(keys), bound_name(user)
    frames = vectors.read_stack(vector)
    limits: dict[str, Any] = {"held_out": number, "max_tokens": max_tokens}
    loaded = opts.load_data(data, reward=reward, schema=schema, drop_duplicates=drop_duplicates, **limits)
    if shifted:
        if not loaded.shifted:
            raise TrainError(f"task {loaded.name} has no shifted prompts: leave out --shifted")
        loaded = replace(loaded, held_out=loaded.shifted)
    samples = loaded.held_out[:number]
    loaded = replace(loaded, held_out=samples)
    if len(samples) < number:
        why = f"task {loaded.name} has {len(samples)} such prompts, and -n is {number}"
        console.note(f"{why}: measuring on all {len(samples)}")
    before = opts.make_preamble(loaded, system, examples)
    free_text = rewards.is_text(loaded.reward)
    record: dict[str, Any] = {"task": loaded.name, "split": "shifted" if shifted else "held_out"}
    record |= {"unit": "nats a token"} if free_text else {}
    if before:
        record["prompt"] = before.record()
    if frames[1:]:
        record["under"] = [sha256(frame).hexdigest() for frame in frames[:-1]]
    found: dict[str, Evaluation] = {}
    with (
        console.progress("loading the model", total=1) as show,
        closing(opts.load_model(bundle, engine, threads, policy=policy)) as llm,
    ):
        checked = admit(frames, llm.bases, policy, user=user) if frames else None
        loaded = loaded if max_tokens is not None else fitted(loaded, llm)
        contestants: dict[str, tuple[Any, Preamble]] = {"base": (None, Preamble())}
        if before:
            contestants["prompt"] = None, before
        if checked is not None:
            if checked.under is not None:
                contestants["beneath"] = checked.under, Preamble()
            contestants["vector"] = checked, Preamble()
            if before:
                contestants["vector + prompt"] = checked, before
        answered = console.counting(show, "measuring: answers", len(samples) * len(contestants))
        arms = record["arms"] = {}
        for name, (value, preamble) in contestants.items():
            prompts = [preamble.before(sample) for sample in samples]
            with llm.batch(prompts, loaded.max_tokens, sequences=32, n_threads=threads) as batch:
                each = measure(batch, loaded, value, preamble=preamble, answered=answered)
                size = len(frames[-1]) if value is checked and frames else 0
                arms[name] = arm(batch, each, prompts, size) | {"scores": each.scores.tolist()}
                keep_answers(record, name, batch, loaded, value, each, preamble, most=number)
            found[name] = each
        if drift:
            progress = console.counting(show, "measuring: drift on general prompts", 5 * len(load_general()))
            if away := results.drift(llm, checked, n_threads=threads, answered=progress):
                record["drift"] = asdict(away)
    pairs = itertools.combinations(contestants, 2)
    comparisons = {f"{name} - {other}": compare(found[other], found[name]) for other, name in pairs}
    record["comparisons"] = {name: asdict(each) for name, each in comparisons.items()}
    if "vector - prompt" in comparisons:
        record["ahead"] = record["comparisons"]["vector - prompt"]
    if page is not None:
        report.write(page, {loaded.name: record})
    if as_json:
        console.print_json(record)
        return
    console.grid(results.table(record))
    sign = -1 if free_text else 1
    rows = [
        (name, results.compared(replace(each, difference=sign * each.difference)))
        for name, each in comparisons.items()
    ]
    console.facts([("held-out prompts", str(len(samples))), *rows, *results.rows(record)])
    names = results.arm_names(record)
    for i, row in enumerate(record.get("answers", ())[:_ANSWERS]):
        console.say()
        console.prose(f"prompt: {row['asked']}")
        for name, each in found.items():
            console.prose(f"  {names[name]} ({sign * each.scores[i]:.3g}): {row[name].strip()}")


def _draw(files: list[str], page: Path | None, as_json: bool) -> None:
    """Show records of runs together, and write them as a page."""
    records: dict[str, Any] = {}
    for file in files:
        try:
            record = read_json(file)
        except ValueError as error:
            raise console.CommandError(f"{file} is no record of a run: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("arms"), dict):
            raise console.CommandError(f"{file} is no record of a run that was measured: it has no arms")
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
