"""`tune`: find a vector on the device itself, with forward passes alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from tinylora_edge import TrainError, __version__
from tinylora_edge.jsonio import write_json
from tinylora_edge.process import first_interrupt
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, results, vectors
from . import options as opts

if TYPE_CHECKING:
    from tinylora_edge.runtime import Budget


def tune(
    bundle: opts.BundleArgument,
    data: opts.DataArgument,
    output: opts.RunFrameOption,
    budget: Annotated[
        str, Option(metavar="AMOUNT", help="Time or tokens to spend: 90s, 5m, 1h, 80ktokens.")
    ] = "5m",
    reward: opts.RewardOption = None,
    schema: opts.SchemaOption = None,
    drop_duplicates: opts.DropDuplicatesOption = False,
    start: Annotated[Path | None, Option(metavar="FILE", help="Begin with this vector.")] = None,
    numbers: Annotated[
        int | None,
        Option(metavar="N", min=1, help="How many numbers, at most one for each module. [default: 13]"),
    ] = None,
    under: opts.UnderOption = None,
    system: opts.SystemOption = None,
    examples: opts.ExamplesOption = None,
    prompts: Annotated[int, Option(metavar="N", min=1, help="Prompts in each step.")] = 8,
    seed: Annotated[int, Option(metavar="N", min=0, help="Seed of all random numbers.")] = 0,
    engine: opts.EngineOption = None,
    threads: opts.ThreadsOption = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
    resume: Annotated[bool, Option("--resume", help="Continue an interrupted run.")] = False,
    evaluate: Annotated[
        bool, Option(help="Measure the gain on held-out prompts, and the drift on general ones.")
    ] = True,
    as_json: opts.JsonOption = False,
) -> None:
    """Tune a vector on this device, by forward passes of the deployed base: no PyTorch, no gradients.

    Texts without prompts, and answers of free text, are scored by their likelihood. For all other tasks, a
    reward scores the answers that the model samples. tune writes the vector that does best on held-back
    training prompts, or the start if no vector does better. Beside FILE it writes FILE.json (settings, curve,
    held-out results). Ctrl-C saves the state, which holds numbers and no text. With --system or --examples,
    the vector is found behind a prompt: use it behind the same prompt.

    \b
    Example:
      tinylora-edge tune out/demo list-lookup --budget 5m -o lookup.bin
    """
    from tinylora_edge import runtime
    from tinylora_edge.eval.measure import Measuring, fitted
    from tinylora_edge.runtime.model import admit
    from tinylora_edge.tasks.rewards import is_text

    amount, state = runtime.Budget.of(budget), _check_files(output, resume)
    loaded = opts.load_data(data, reward=reward, schema=schema, drop_duplicates=drop_duplicates)
    sign, unit = (-1, "nats a token") if is_text(loaded.reward) else (1, "")
    loaded = opts.make_preamble(loaded, system, examples).before_task(loaded)
    rules: dict[str, Any] = {"policy": keyfiles.policy(keys), "user": bound_name(user)}
    frame = None if under is None else vectors.read(str(under))
    first = vectors.read_stack(None if start is None else [str(start)])
    with (
        console.progress("loading the model", total=1) as show,
        closing(opts.load_model(bundle, engine, threads, vector=first, **rules)) as llm,
    ):
        loaded, sequence = fitted(loaded, llm), vectors.next_sequence(llm.vector)
        shared = None if frame is None else admit(frame, llm.bases, llm.policy, beneath=True)
        learner = runtime.RewardLearner(
            llm,
            loaded.train,
            loaded.reward,
            shaped=loaded.shaped,
            basis=None if numbers is None else llm.bases.basis(numbers=numbers),
            start=llm.vector,
            under=shared,
            seed=seed,
            max_tokens=loaded.max_tokens,
            schema=loaded.schema,
            settings=runtime.TuneSettings(prompts=prompts),
            path=state,
            report=_reporter(show, amount, unit or "reward", sign),
            n_threads=threads,
        )
        if start is None and any(learner.state.start):
            raise TrainError(f"{state} began with a vector: continue with the same --start")

        def interrupted() -> None:
            learner.stop()
            console.acknowledge_interrupt()

        show("scoring the start")
        with first_interrupt(interrupted):
            found = learner.run(amount.less(learner.state.tokens, learner.state.seconds))
        if found.stopped == "stopped":
            console.note(f"interrupted after step {found.steps}: the state is saved, continue with --resume")
            raise typer.Exit(130)
        vector = replace(found.vector, dtype="fp32", sequence=sequence)
        written = vector.to_bytes(llm.bases.of(vector))
        record: dict[str, Any] = {"task": loaded.name, "values": vector.values.tolist()}
        record |= {"result": found.record()} | ({"unit": unit} if unit else {})
        shared_digest = None if frame is None else sha256(frame).hexdigest()
        parts = {"preamble": loaded.preamble, "schema": loaded.schema, "under": shared_digest}
        record |= {name: part for name, part in parts.items() if part is not None}
        if evaluate:
            more: dict[str, Any] = {"n_threads": threads, "record": record}
            Measuring(llm, loaded, vector, len(written), console.measuring(show), **more).run()
    made: dict[str, Any] = {"tool": f"tinylora-edge {__version__}", "basis": vector.basis}
    made |= {"dtype": vector.dtype, "sequence": vector.sequence, "budget": asdict(amount), "seed": seed}
    made |= {"settings": asdict(learner.settings), **record, "curve": learner.state.curve}
    write_json(output.with_name(f"{output.name}.json"), made)
    vectors.write(str(output), written)
    state.unlink(missing_ok=True)
    if not found.improved:
        on = console.counted(found.held_back, "prompt")
        console.warn(f"nothing did better than the start on the {on} held back: {output} is the start")
    wrote = (
        f"wrote {output} ({len(written)} bytes) after {console.counted(found.steps, 'step')}, "
        f"{found.tokens:,} tokens and {found.seconds:.0f} s: held back "
        f"{sign * found.start_score:.3f} -> {sign * found.score:.3f} {unit}"
    )
    console.report({"file": str(output), **record}, as_json, wrote.strip())
    if not as_json:
        results.show(record)


def _check_files(output: Path, resume: bool) -> Path:
    """Return the file of the state. Errors: a file to be written is there already, or a state is there
    without --resume, or missing with it."""
    state = output.with_name(f"{output.name}.state")
    vectors.check_target(str(output))
    if not resume:
        vectors.check_target(f"{output}.json")
    if resume is not state.exists():
        raise TrainError(
            f"there is no state {state} to resume from: start without --resume"
            if resume
            else f"{state} holds the state of an unfinished run: continue with --resume, or remove it"
        )
    return state


def _reporter(show: console.Show, budget: Budget, unit: str, sign: int) -> Callable[[dict[str, Any]], None]:
    """Return a `report` that shows the rewards of a run, and how much of its budget is spent."""
    limits = {key: limit for key, limit in asdict(budget).items() if limit is not None}
    known: dict[str, str] = {}

    def report(row: dict[str, Any]) -> None:
        if row.get("event") in ("restart", "end"):
            return
        names = {"reward": unit, "check": "held back"}
        known.update({key: f"{name} {sign * row[key]:.2f}" for key, name in names.items() if key in row})
        spent = max(row[key] / limit for key, limit in limits.items())
        show("  ".join([f"step {row.get('step', 0)}", *known.values()]), done=min(spent, 1.0))

    return report
