"""Everything that writes: a step from an old content to a new one, and what must hold whatever stops it."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import support
from gguf_readers import gguf_image
from invocation import in_process

from tinylora_edge import Ed25519Signer, Ed25519Verifier, MicroVector, Policy, load_bundle
from tinylora_edge.errors import RollbackError, TransferError
from tinylora_edge.exporters import export
from tinylora_edge.formats import side_tensors
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.serve.store import Store
from tinylora_edge.shipping.fetch import frame_path
from tinylora_edge.shipping.publish import publish
from tinylora_edge.train import trainer
from tinylora_edge.wire.frame import DEFAULT_USER
from tinylora_edge.writes import atomic_write

BASIS = support.random_basis(blocks=1, kinds=("attn_q",), groups=1, n_in=8, n_out=6)
SIGNER = Ed25519Signer(bytes(range(32)))
BASES = support.bases_with(BASIS)
VALUES = np.ones(BASIS.size, np.float32)


class Progress:
    """What the writer was told is done, as its parent sees it: in memory that both share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def done(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    @done.setter
    def done(self, value: int) -> None:
        self._memory[:8] = struct.pack("<Q", value)


@dataclass(frozen=True)
class Writer:
    """One writer.

    Attributes:
        name: of what is written.
        prepare: brings a folder into its old state, without faults.
        act: goes on to the new state, and raises `Progress.done` at every step that is said to be safe.
        check: what is found is whole: the old state or a later one, and nothing that was said to be safe is
            lost. It is given what was done.
        steps: `Progress.done` at the end.
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path, Progress], None]
    check: Callable[[Path, int], None]
    steps: int = 1


def frame(sequence: int, user: str = "") -> bytes:
    return MicroVector(VALUES * sequence, sequence=sequence).to_bytes(BASIS, SIGNER, user=user)


def sequence_of(data: bytes) -> int:
    """The sequence of a frame that is whole."""
    checked = Policy(keys=[Ed25519Verifier(SIGNER.public_key)]).check(data, BASIS)
    assert checked.values.reshape(-1)[0] == checked.sequence
    return checked.sequence


def _whole(folder: Path, size: int, byte: bytes) -> None:
    with atomic_write(folder / "file") as file:
        for _ in range(4):
            file.write(byte * size)


def _act_whole(folder: Path, progress: Progress) -> None:
    _whole(folder, 3000, b"n")
    progress.done = 1


def _check_whole(folder: Path, done: int) -> None:
    data = (folder / "file").read_bytes()
    assert data == b"n" * 12_000 or (not done and data == b"o" * 4)


def _policy(folder: Path) -> Policy:
    return Policy(keys=[Ed25519Verifier(SIGNER.public_key)], state=folder / "state")


def _apply(folder: Path, sequence: int) -> None:
    policy = _policy(folder)
    policy.record(policy.check(frame(sequence), BASES))


def _newer(accept: Callable[[Path, int], None], folder: Path, progress: Progress) -> None:
    for sequence in (6, 7):
        with suppress(RollbackError):  # done before
            accept(folder, sequence)
        progress.done = sequence - 5


def _check_policy(folder: Path, done: int) -> None:
    policy = _policy(folder)
    for sequence in range(5 + done):
        with suppress(RollbackError):
            policy.check(frame(sequence), BASIS)
            raise AssertionError(f"sequence {sequence} was accepted again after {5 + done}")
    policy.check(frame(8), BASIS)


def _put(folder: Path, sequence: int) -> None:
    with closing(Store(folder / "users.db", BASES)) as store:
        policy = Policy(keys=[Ed25519Verifier(SIGNER.public_key)], state=store.sequences)
        store.put("alice", frame(sequence, "alice"), policy)


def _check_store(folder: Path, done: int) -> None:
    with closing(Store(folder / "users.db", BASES)) as store:
        found = store.get("alice")
    assert found is not None
    assert 5 + done <= found.sequence <= 7
    assert found.frame == frame(found.sequence, "alice")
    with suppress(RollbackError):
        _put(folder, found.sequence - 1)
        raise AssertionError(f"sequence {found.sequence - 1} was accepted again")


_IDENTITY = {"digest": BASIS.digest}


def _step(folder: Path, step: int) -> None:
    state = trainer.TrainState.start(np.full(1, step, np.float32))
    state.step = step
    state.curve = [{"step": number, "padding": "x" * 100} for number in range(1, step + 1)]
    trainer.save_checkpoint(folder / "checkpoint.json", state, _IDENTITY)


def _train(folder: Path, progress: Progress) -> None:
    for step in range(trainer.read_checkpoint(folder / "checkpoint.json", _IDENTITY).step + 1, 4):
        _step(folder, step)
        progress.done = step
    with atomic_write(folder / "v.bin") as file:
        file.write(frame(4))
    progress.done = 4


def _check_training(folder: Path, done: int) -> None:
    state = trainer.read_checkpoint(folder / "checkpoint.json", _IDENTITY)
    assert state.step == state.v[0] == len(state.curve)
    assert max(1, min(done, 3)) <= state.step <= 3
    if done == 4 or (folder / "v.bin").exists():
        assert sequence_of((folder / "v.bin").read_bytes()) == 4


def _base(folder: Path) -> None:
    pairs: list[Any] = [("general.architecture", 8, "llama"), ("llama.block_count", 4, 1)]
    image = gguf_image(pairs, [("blk.0.attn_q.weight", [8, 6], 0, bytes(4 * 48))])
    (folder / "tiny.gguf").write_bytes(image)


def _act_bundle(folder: Path, progress: Progress) -> None:
    if not (folder / "bundle").exists():
        base = folder / "tiny.gguf"
        found = side_tensors.fingerprint(GGUFFile(base), BASIS.modules)
        with export.new_bundle(folder / "bundle") as partial:
            export.fill_bundle(partial, BASES.with_fingerprint(found), {}, base=base)
    progress.done = 1


def _check_bundle(folder: Path, done: int) -> None:
    if done or (folder / "bundle").exists():
        bundle = load_bundle(folder / "bundle")
        bundle.check_base()
        assert bundle.manifest
        names = {path.name for path in (folder / "bundle").iterdir()}
        assert names == {"base.gguf", "basis.gguf", "manifest.json"}


def _prepare_publish(folder: Path) -> None:
    publish(frame(5), BASES, str(folder / "site"))


def _act_publish(folder: Path, progress: Progress) -> None:
    for sequence in (6, 7):
        try:
            publish(frame(sequence), BASES, str(folder / "site"))
        except TransferError as error:
            if "and this frame" not in str(error):  # done before
                raise
        progress.done = sequence - 5


def _check_publish(folder: Path, done: int) -> None:
    latest = sequence_of((folder / "site" / frame_path(BASES.id, DEFAULT_USER)).read_bytes())
    assert 5 + done <= latest <= 7
    numbered = folder / "site" / frame_path(BASES.id, DEFAULT_USER, latest)
    assert sequence_of(numbered.read_bytes()) == latest


# The command `fetch`, from a server that another process runs.


def _prepare_fetch(folder: Path) -> None:
    side_tensors.save_bases(BASES, folder / "basis.gguf")
    (folder / "key.pub").write_text(SIGNER.pem()[1])
    (folder / "v.bin").write_bytes(frame(5))
    _apply(folder, 5)


def _act_fetch(url: str, folder: Path, progress: Progress) -> None:
    arguments = [url, folder / "basis.gguf", "-o", folder / "v.bin", "--key", folder / "key.pub"]
    outcome = in_process()("fetch", *arguments, "--state", folder / "state")
    if outcome.code:
        raise OSError(outcome.stderr)
    progress.done = 1


def _check_fetch(folder: Path, done: int) -> None:
    found = sequence_of((folder / "v.bin").read_bytes())
    assert found in ((7,) if done else (5, 7))
    policy = _policy(folder)
    policy.check(frame(7), BASIS)  # what the server has is accepted, so that doing it again completes it
    if found == 7:
        with suppress(RollbackError):
            policy.check(frame(6), BASIS)
            raise AssertionError("the file is newer than the state")


def writers(url: str) -> list[Writer]:
    """Every writer; `url` has the site of a published vector with sequence 7."""
    return [
        Writer("a file", lambda folder: _whole(folder, 1, b"o"), _act_whole, _check_whole),
        Writer("a policy's state", partial(_apply, sequence=5), partial(_newer, _apply), _check_policy, 2),
        Writer("a store", partial(_put, sequence=5), partial(_newer, _put), _check_store, 2),
        Writer("a training run", partial(_step, step=1), _train, _check_training, 4),
        Writer("a bundle", _base, _act_bundle, _check_bundle),
        Writer("publish", _prepare_publish, _act_publish, _check_publish, 2),
        Writer("fetch", _prepare_fetch, partial(_act_fetch, url), _check_fetch),
    ]
