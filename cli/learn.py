"""`learn`: a bundle whose 13 numbers stand for directions that were learned."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import BundleArgument, JsonOption


def learn(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE2", help="The bundle to write.")],
    behaviours: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Behaviours beside the shipped ones.")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Learn from FILE.jsonl alone.")] = False,
    directions: Annotated[int, typer.Option("--n", metavar="N", min=1, help="Numbers of a vector.")] = 13,
    questions: Annotated[int, typer.Option(metavar="N", min=1, help="Questions to each behaviour.")] = 8,
    weights: Annotated[Path | None, typer.Option(metavar="DIR", help="Hugging Face weights.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn which directions of R are worth a number, and write a bundle with them.

    Done once per model, on a host, with PyTorch. The factors and the base stay; vectors of BUNDLE do not fit
    BUNDLE2. What is done lies in BUNDLE2.learn, and an interrupted run goes on from there.

    \b
    Examples:
      tinylora-edge learn smollm2 -o smollm2-learned
      tinylora-edge learn smollm2 -o smollm2-mine --behaviours mine.jsonl
    """
    from ..exporters import refuse_existing
    from ..exporters.bundle_writer import write_bundle
    from ..formats.bundle import load_bundle
    from ..tasks.behaviours import load_behaviours
    from ..train.learn import LearnSettings
    from ..train.learn import learn as learn_basis

    if only and behaviours is None:
        raise typer.BadParameter("there is no FILE.jsonl to learn from", param_hint="--only")
    refuse_existing(output)
    base = load_bundle(bundle).base
    shipped = () if only else load_behaviours()
    chosen = [*shipped, *(() if behaviours is None else load_behaviours(behaviours))]
    folder = output.with_name(f"{output.name}.learn")
    settings = LearnSettings(directions=directions, questions=questions)
    with console.progress("asking the model", len(chosen)) as show:

        def report(row: dict[str, Any]) -> None:
            said = f"{row['name']}: {row['before']:.2f} nats a token"
            show(f"behaviour {row['done']}/{len(chosen)}, {said}", done=row["done"])

        learned = learn_basis(
            bundle, folder, behaviours=chosen, settings=settings, weights=weights, report=report
        )
    facts = {
        "behaviours": len(learned.behaviours),
        "energy": float(learned.energy.sum()),
        "seconds": round(learned.seconds, 1),
    }
    basis, placed = write_bundle(output, learned.basis, {"basis": {"learned": facts}}, base=base)
    for path in folder.glob("*.npz"):
        path.unlink()
    with suppress(OSError):  # it holds something of others
        folder.rmdir()
    record = {"bundle": str(output), "digest": basis.digest, "values": basis.size, "base": placed}
    record |= {
        "learned": facts,
        "behaviours": [
            {"name": name, "divergence": divergence, "held": held}
            for name, divergence, held in learned.behaviours
        ],
    }
    mean = sum(divergence for _, divergence, _ in learned.behaviours) / max(len(learned.behaviours), 1)
    console.report(
        record,
        as_json,
        f"wrote {output}, basis {basis.id}: {basis.size} directions hold {facts['energy']:.2f} of what "
        f"{console.counted(len(learned.behaviours), 'behaviour')} ask of R; their prompts move the model by "
        f"{mean:.2f} nats a token. It took {learned.seconds:.0f} s.",
    )
