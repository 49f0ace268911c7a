"""`eval`: prove in the deployed runtime that a vector helps."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from statistics import fmean
from typing import Annotated, Any

from typer import BadParameter, Option

from .. import TrainError
from ..wire.frame import DEFAULT_USER, bound_name
from . import console, keyfiles, results, vectors
from . import options as opts

_ANSWERS = 3  # prompts whose answers are printed


def evaluate(
    bundle: opts.BundleArgument,
    data: opts.DataArgument,
    vector: opts.VectorsOption = None,
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

    Of a stack, the vectors beneath the last one are measured by themselves too.

    With --system or --examples the prompt that could take the vector's place is measured on the same prompts,
    alone and together with the vector.

    The drift is how far the vector moves the model from its base on general prompts that nobody trained on:
    in nats, and in answers that begin to repeat themselves or to be wrong.

    \b
    Examples:
      tinylora-edge eval out/demo list-lookup --vector lookup.bin
      tinylora-edge eval out/demo list-lookup --vector lookup.bin --system "One word." --examples 2
    """
    from ..eval import Evaluation, compare
    from ..eval import evaluate as measure
    from ..eval.measure import fitted
    from ..runtime.model import admit
    from ..tasks import Preamble, rewards

    if drift and vector is None:
        raise BadParameter("the drift is a vector's: say which, with --vector", param_hint="--drift")
    policy, user = keyfiles.policy(keys), bound_name(user)
    frames = vectors.read_stack(vector)
    limits: dict[str, Any] = {"held_out": number, "max_tokens": max_tokens}
    loaded = opts.load_data(data, reward=reward, schema=schema, drop_duplicates=drop_duplicates, **limits)
    if shifted:
        if not loaded.shifted:
            raise TrainError(f"task {loaded.name} has no shifted prompts: leave out --shifted")
        loaded = replace(loaded, held_out=loaded.shifted)
    samples = loaded.held_out[:number]
    if len(samples) < number:
        why = f"task {loaded.name} has {len(samples)} such prompts, and -n is {number}"
        console.note(f"{why}: measuring on all {len(samples)}")
    before = opts.make_preamble(loaded, system, examples)
    found: dict[str, Evaluation] = {}
    arms: dict[str, dict[str, Any]] = {}
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
        done, total = itertools.count(1), len(samples) * len(contestants)

        def answered() -> None:
            number = next(done)
            show(f"{number}/{total} answers", done=number, total=total)

        for name, (value, preamble) in contestants.items():
            prompts = [preamble.before(sample) for sample in samples]
            with llm.batch(prompts, loaded.max_tokens, sequences=32, n_threads=threads) as batch:
                each = measure(batch, loaded, value, samples=samples, preamble=preamble, answered=answered)
                tokens = fmean(map(len, batch.encode(prompts)))
            found[name] = each
            arms[name] = {"n": each.n, "mean": each.mean, "standard_error": each.standard_error}
            arms[name] |= {"tokens": tokens, "bytes": len(frames[-1]) if value is checked and frames else 0}
        away = None
        if drift:
            show("measuring the drift on general prompts")
            away = results.drift(llm, checked, n_threads=threads)
    pairs = itertools.combinations(contestants, 2)
    comparisons = {f"{name} - {other}": compare(found[other], found[name]) for other, name in pairs}
    free_text = rewards.is_text(loaded.reward)
    record: dict[str, Any] = {"unit": "nats a token"} if free_text else {}
    beside: dict[str, Any] = {} if away is None else {"drift": asdict(away)}
    if frames[1:]:
        beside["under"] = [sha256(frame).hexdigest() for frame in frames[:-1]]
    if as_json:
        record |= {"task": loaded.name, "split": "shifted" if shifted else "held_out", **beside}
        for name, each in found.items():
            record[name] = arms[name] | {"scores": each.scores.tolist(), "answers": each.answers}
        record["comparisons"] = {name: asdict(each) for name, each in comparisons.items()}
        console.print_json(record)
        return
    console.grid(results.table(record | {"arms": arms}))
    sign = -1 if free_text else 1
    rows = [
        (name, results.compared(replace(each, difference=sign * each.difference)))
        for name, each in comparisons.items()
    ]
    console.facts([("held-out prompts", str(len(samples))), *rows, *results.rows(beside)])
    if free_text:
        return
    width = max(map(len, found))
    for i in range(min(_ANSWERS, len(samples))):
        console.say()
        console.prose(f"prompt: {samples[i].text}")
        for name, each in found.items():
            console.prose(f"  {name:<{width}} ({each.scores[i]:g}): {each.answers[i].strip()}")
