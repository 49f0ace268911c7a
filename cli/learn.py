"""`learn`: adds learned directions of R to a bundle."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Option

from tinylora_edge import MicroVector, TrainError, VectorError, load_bundle

from . import console, keyfiles, vectors
from . import options as opts


def learn(
    bundle: opts.BundleArgument,
    behaviours: Annotated[
        Path | None, Option(metavar="FILE.jsonl", help="Behaviours to learn besides the shipped ones.")
    ] = None,
    only: Annotated[bool, Option("--only", help="Learn from FILE.jsonl alone.")] = False,
    users: Annotated[
        Path | None,
        Option("--from", metavar="FOLDER", help="Learn from the vectors of users in this folder, *.bin."),
    ] = None,
    numbers: Annotated[int, Option(metavar="N", min=1, help="Numbers of a vector.")] = 13,
    weights: Annotated[Path | None, Option(metavar="DIR", help="Hugging Face weights to learn on.")] = None,
    key: opts.SignerOption = None,
    as_json: opts.JsonOption = False,
) -> None:
    """Learn the directions of R along which small vectors gain most, and add them to BUNDLE.

    Do this once per model, on a host, with PyTorch. Older vectors stay valid; new vectors with --numbers 13
    use the new directions. The folder BUNDLE.learn keeps finished parts, so that an interrupted run can
    continue. --from takes the directions in which the vectors of users differ. These must have the same
    --rank; it takes seconds.

    \b
    Examples:
      tinylora-edge learn smollm2
      tinylora-edge learn smollm2 --behaviours mine.jsonl --key fleet.key
      tinylora-edge learn smollm2 --from vectors
    """
    from tinylora_edge.exporters import add_projection
    from tinylora_edge.formats.signatures import check_signer
    from tinylora_edge.tasks.behaviours import load_behaviours
    from tinylora_edge.train.learn import learn as learn_projection
    from tinylora_edge.train.learn import learn_from

    if only and behaviours is None:
        raise BadParameter("there is no FILE.jsonl to learn from", param_hint="--only")
    if users is not None and (behaviours, weights) != (None, None):
        raise BadParameter(
            "--from learns from vectors: leave out --behaviours and --weights", param_hint="--from"
        )
    signer, found = None if key is None else keyfiles.signer(key), load_bundle(bundle)
    check_signer(found, signer)
    whole = bundle.absolute()
    folder = whole.with_name(f"{whole.name}.learn")
    if users is not None:
        read = list[MicroVector]()
        for path in sorted(users.glob("*.bin")):
            try:
                read.append(MicroVector.from_bytes(vectors.read(str(path)), found.bases))
            except VectorError as error:
                raise type(error)(f"{path}: {error}. Pack it without a key to learn from it") from None
        if (bases := len({vector.basis for vector in read})) != 1:
            raise TrainError(
                f"{users} has {len(read)} vectors (*.bin) of {bases} different bases, expected one basis"
            )
        learned = learn_from(found.bases.of(read[0]), [vector.values for vector in read], numbers)
        facts: dict[str, Any] = {"vectors": len(read)}
        of = console.counted(len(read), "vector")
    else:
        shipped = () if only else load_behaviours()
        chosen = [*shipped, *(() if behaviours is None else load_behaviours(behaviours))]
        with console.progress("asking the model", len(chosen)) as show:

            def report(row: dict[str, Any]) -> None:
                text = f"{row['name']}: {row['before']:.2f} nats a token"
                show(f"behaviour {row['done']}/{len(chosen)}, {text}", done=row["done"])

            learned = learn_projection(
                bundle, folder, behaviours=chosen, directions=numbers, weights=weights, report=report
            )
        energy, of = float(learned.energy.sum()), console.counted(len(chosen), "behaviour")
        facts = {"behaviours": len(chosen), "energy": energy, "seconds": round(learned.seconds, 1)}
    basis = add_projection(bundle, learned.projection, facts, signer=signer)
    if users is None:
        for path in folder.glob("*.npz"):
            path.unlink()
        with suppress(OSError):  # somebody else's file is in it
            folder.rmdir()
    record = {"bundle": str(bundle), "basis": basis.digest, "numbers": basis.size, "learned": facts}
    if learned.behaviours:
        names = "name", "divergence", "held"
        record["behaviours"] = [dict(zip(names, each, strict=True)) for each in learned.behaviours]
    text = f"added basis {basis.id} to {bundle}: {basis.size} directions of {of}, in {learned.seconds:.0f} s"
    console.report(record, as_json, text)
