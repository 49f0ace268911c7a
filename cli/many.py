"""`train` of many users: its progress and its report."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import typer
from typer import BadParameter

from tinylora_edge import Policy, load_bundle
from tinylora_edge.serve.store import Store
from tinylora_edge.shipping.bucket import shown
from tinylora_edge.wire import tags
from tinylora_edge.wire.frame import head
from tinylora_edge.writes import atomic_write

from . import console, keyfiles

_WORDS = {
    "learned": "",
    "unchanged": "their texts have not changed since their vector was learned",
    "kept": "the new vector is not better than the shared one: not published",
    "overtaken": "a newer vector was stored meanwhile, and stays",
    "failed": "",
}
_SHOWN = 10  # failures that are printed; the report has all


class _InStore:
    """A servers' store as the `Target` of `train_many`."""

    def __init__(self, store: Store, policy: Policy) -> None:
        self._store, self._policy, self.last = store, policy, store.last

    def put_newer(self, user: str, frame: bytes) -> bool:
        return self._store.put_newer(user, frame, self._policy)


def train_users(
    bundle: Path,
    users: Path,
    output: Path,
    options: Any,
    *,
    under: Path | None,
    store: str | None,
    keys: list[Path] | None,
    evaluate: bool,
    workers: int | None,
    ray: str | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a vector for each user of a folder or a file, and publish them in another folder, or a store."""
    from tinylora_edge.train import train_many
    from tinylora_edge.train.texts import whitening_path

    if under is None:
        raise BadParameter(
            "vectors of many users need a shared vector beneath them: name it", param_hint="--under"
        )
    signer, trusted = keyfiles.signer_and_trusted(keys)
    if signer is not None and not trusted and head(options.under).kind != tags.CRC32:
        trusted = keyfiles.verifier(signer)
    record, target = f"{str(output).rstrip('/')}.report.jsonl", shown(store) if store else str(output)
    options, beside, found = replace(options, keys=trusted), whitening_path(under), list[Any]()
    stopped = False
    with console.progress("loading the model", 1.0) as bar, ExitStack() as stack:
        to: Path | _InStore = output
        if store is not None:
            bases = load_bundle(bundle).bases
            opened = stack.enter_context(closing(Store(store, bases)))
            to = _InStore(opened, Policy(keys=keyfiles.verifier(signer), state=opened.sequences))
        counts: Counter[str] = Counter()

        def show(event: dict[str, Any]) -> None:
            nonlocal stopped
            if event["event"] == "users":
                counts["users"], counts["done"] = event["users"], event["done"]
            elif event["event"] == "whitening":
                with atomic_write(beside) as file:
                    file.write(event["data"])
                console.note(f"wrote {beside}, made from the users' texts: later runs use it")
            elif event["event"] == "stopping":
                stopped = True
                console.acknowledge_interrupt()

        results = train_many(
            bundle,
            users,
            to,
            options=options,
            signer=signer or "crc32",
            evaluate=evaluate,
            workers=workers,
            ray=ray,
            resume=resume,
            record=record,
            report=show,
        )
        for result in results:
            found.append(result)
            counts["done"] += 1
            counts[result.status] += 1
            said = [f"{counts[status]} {status}" for status in _WORDS if counts[status]]
            bar(f"{counts['done']:,} of {counts['users']:,} users: {', '.join(said)}")
            bar(done=counts["done"] / counts["users"])
    about: dict[str, Any] = {"vectors": target, "report": record, "users": counts["users"]}
    about |= {status: counts[status] for status in _WORDS}
    gains = [result.gain for result in found if result.status != "unchanged" and result.gain is not None]
    about |= {"gain": fmean(gains)} if gains else {}
    wrote = f"{console.counted(counts['done'], 'user')} of {counts['users']:,} in {target}; report: {record}"
    failed = [(result.user, result.why) for result in found if result.status == "failed"]
    rows = [
        (status, f"{counts[status]:,}  {why}".strip()) for status, why in _WORDS.items() if counts[status]
    ]
    if gains:
        ahead = sum(gain > 0 for gain in gains)
        rows.append(
            ("gain", f"{fmean(gains):+.3f} nats a token, the mean; {ahead} of {len(gains)} users gain")
        )
    console.report(about, as_json, wrote, rows=[*rows, *failed[:_SHOWN]])
    if stopped:
        console.note("interrupted: continue with --resume")
        raise typer.Exit(130)
    if failed and len(failed) == len(found):
        raise typer.Exit(1)
