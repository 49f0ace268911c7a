"""`train_many`: a vector for each of many users, on all cores of a machine or of a cluster.

The driver reads users, hands their texts to workers (`crews`), signs what these learned, publishes it and
keeps the report. Keys and files stay with it: workers need the bundle alone.

A line of the report is written before the frame that it tells of is published, and counts once that frame is
there. So after a run was killed at any point, `resume` knows which users are done, and learns none twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol

from ..basis import Bases, Basis
from ..errors import FrameError, TinyLoraError, TrainError, TransferError
from ..formats.bundle import load_bundle
from ..jsonio import parse_json, plain, restored
from ..limits import VECTOR_FILE_BYTES
from ..process import first_interrupt
from ..runtime.learning.state import Report
from ..shipping.fetch import frame_path
from ..shipping.publish import publish
from ..tasks.files import read_objects, read_samples
from ..vector import FIRST_SEQUENCE, LAST_SEQUENCE, MicroVector
from ..wire.frame import DEFAULT_USER, RULE, head, is_portable
from ..wire.tags import Signer
from ..writes import atomic_write, locked, open_file
from .adapter import default_dtype
from .crews import Cluster, Crew, Failed, Job, Processes
from .options import Options
from .texts import FEWEST, OTHERS, Learned, for_whitening, framing

TRIES = 3
"""Workers lost over one user, after which the user fails: their texts are taken for the cause."""


@dataclass(frozen=True, kw_only=True)
class UserResult:
    """The result for one user: a line of the report.

    Attributes:
        user: their name.
        status: `learned`; `unchanged`: their texts are those of their vector; `kept`: what was learned does
            not beat the shared vector, and they keep what they had; `overtaken`: a newer vector came
            meanwhile, and stays; `failed`.
        why: what failed.
        texts, tokens: how many were learned from.
        steps: full steps.
        seconds: of learning, and of measuring the gain.
        loss: nats a token before the first step, and before the last one, of the texts of that step.
        gain: nats a token better than the shared vector on held-out texts, where that was measured.
        sequence, bytes: of the frame.
        data: SHA-256 of the texts, and of what they were learned with.
    """

    user: str
    status: str
    why: str = ""
    texts: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    loss: list[float] | None = None
    gain: float | None = None
    sequence: int | None = None
    bytes: int = 0
    data: str = ""


class Target(Protocol):
    """Where users' frames go."""

    def last(self, user: str) -> int | None:
        """Return the sequence of a user's newest frame; None where they have none."""

    def put_newer(self, user: str, frame: bytes) -> bool:
        """Write a frame as a user's newest, if its sequence is above that of the one they have; return
        whether it was written."""


class Folder:
    """A folder of `publish`, which devices fetch from: a `Target`."""

    def __init__(self, root: str | PathLike[str], bases: Bases) -> None:
        self.root, self._bases = Path(root), bases

    def last(self, user: str) -> int | None:
        """Return the sequence of a user's newest frame. FrameError: what is there is no frame."""
        try:
            with open_file(self.root / frame_path(self._bases.id, user)) as file:
                return head(file.read(VECTOR_FILE_BYTES + 1)).sequence
        except FileNotFoundError:
            return None

    def put_newer(self, user: str, frame: bytes) -> bool:
        """Publish a frame; return whether its sequence is above the last one."""
        try:
            publish(frame, self._bases, str(self.root), user=user)
        except TransferError:
            last = self.last(user)
            if last is None or last < head(frame).sequence:
                raise
            return False
        return True


def train_many(
    bundle: str | PathLike[str],
    users: str | PathLike[str] | Mapping[str, Sequence[str]],
    to: str | PathLike[str] | Target,
    *,
    options: Options,
    signer: Signer | str = "crc32",
    evaluate: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    resume: bool = False,
    record: str | PathLike[str] | None = None,
    report: Report = lambda metrics: None,
) -> Iterator[UserResult]:
    """Learn a vector from each user's texts, on a shared vector, and yield each user's result as it is done.

    A user's frame is bound to their name, and its sequence is above that of what they have. A user whose
    texts have not changed since is left alone. What fails of one user (data, too few texts, a crash) is in
    their result, and all others go on. The first SIGINT ends the run after the users at hand.

    Workers are processes that import the program's main module: a script calls this under
    `if __name__ == "__main__":`.

    Args:
        bundle: of the base that is deployed. On a cluster it is at this path on every node.
        users: a folder with a file of texts for each user (`alice.jsonl`, `bob.txt`), a JSONL whose lines
            have `user` and `text`, or texts by user.
        to: a folder for `publish`, or another place.
        options: `under` and `whitening` are the shared vector's. Without a whitening, one is made of the
            users' texts, and reported as an event. Budgets (`minutes`, `steps`), `lr`, `start` and
            `evaluate` are ignored.
        signer: of the frames, or "crc32".
        evaluate: measure each user's gain by a run of its own that holds out a tenth of their texts. A vector
            that does not beat the shared one is not published.
        workers: processes, or actors; None: one process, or as many actors as the cluster has cores.
        ray: the address of a Ray cluster, as `ray.init` takes it (`auto`).
        resume: go on with the report of a run that was interrupted. Users that it reports are not tried
            again, also those that failed.
        record: the report, JSON lines; None: `to`.report.jsonl.
        report: called with events: `users` (how many, and how many are done), `whitening`, `stopping`.

    Raises:
        TrainError: there is no shared vector, there are no users, another run writes the report, or no worker
            can load the model.
        MissingExtraError: Ray is asked for and not installed.
        BasisError, VectorError: as `train`.
    """
    if options.under is None:
        raise TrainError("users' vectors lie on a shared one: name it (--under)")
    if workers is not None and workers < 1:
        raise TrainError(f"workers is {workers}, expected at least 1")
    bases = load_bundle(bundle).bases
    target = Folder(to, bases) if isinstance(to, str | PathLike) else to
    if record is None:
        if not isinstance(to, str | PathLike):
            raise TrainError("a report needs a place beside a target that is no folder: name one (record)")
        record = f"{os.fspath(to).rstrip('/')}.report.jsonl"
    known = users if isinstance(users, Mapping) else read_users(Path(users))
    if not known:
        raise TrainError(f"{users}: there are no users, expected files NAME.jsonl or NAME.txt with texts")
    options = replace(options, workers=1, dtype=options.dtype or default_dtype())  # the same in all workers
    job = _ManyUsers(target, bases, options, signer, evaluate, report)

    def crew(options: Options, most: int) -> Crew:
        path = str(Path(bundle).absolute())
        if ray is not None:
            return Cluster(path, options, ray, workers or 0, most)
        return Processes(path, options, min(workers or 1, most))

    return job.run({user: known[user] for user in sorted(known)}, crew, Path(record), resume)


def read_users(path: Path) -> dict[str, Sequence[str] | TrainError]:
    """Return the texts of each user of a folder or a JSONL; or why a user has none.

    TrainError: the path is neither, or a line names no user.
    """
    found: dict[str, Sequence[str] | TrainError] = {}
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".jsonl", ".txt")]
        for file in files:
            if file.stem in found:
                found[file.stem] = TrainError(f"{file}: there is another file of this user: make them one")
                continue
            try:
                found[file.stem] = _texts_of(file)
            except TrainError as error:
                found[file.stem] = error
        return found
    lines: dict[str, list[str]] = {}
    for place, row in read_objects(path, "the users' texts"):
        user, text = row.get("user"), row.get("text")
        if not isinstance(user, str) or not user:
            raise TrainError(f'{place}: there is no "user", expected the name of one on every line')
        if not isinstance(text, str) or not text.strip():
            found.setdefault(user, TrainError(f'{place}: there is no "text" to learn'))
        else:
            lines.setdefault(user, []).append(text)
    return {**lines, **found}


def names_users(path: Path) -> bool:
    """Whether a path has texts of many users: a folder, or a JSONL whose first line names a user and a
    text."""
    if path.is_dir():
        return True
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    try:
        _, row = next(read_objects(path), ("", {}))
    except TrainError:
        return False  # whoever reads all of it says what is wrong
    return {"user", "text"} <= row.keys()


def _texts_of(file: Path) -> list[str]:
    lines = read_samples(file)[0]
    if not lines[0].sample.unprompted:
        raise TrainError(f'{file}: it has prompts, expected texts without: lines such as {{"text": ...}}')
    return [str(line.sample.answer) for line in lines if line.drawn or line.split == "train"]


class _ManyUsers:
    """One run: what its users share."""

    def __init__(
        self,
        target: Target,
        bases: Bases,
        options: Options,
        signer: Signer | str,
        evaluate: bool,
        report: Report,
    ) -> None:
        self._target, self._bases, self._signer = target, bases, signer
        self._basis: Basis = options.basis(bases)
        self._options = options = framing(options, self._basis)
        self._evaluate, self._report = evaluate, report
        under = hashlib.sha256(options.under or b"").hexdigest()
        signed = getattr(signer, "id", "")
        self._with = [self._basis.digest, under, options.frame_dtype, signed]
        self._last: dict[str, int | None] = {}  # sequences of users at work, when their texts were handed out
        self._stopping = False

    def run(
        self,
        users: Mapping[str, Sequence[str] | TrainError],
        crew: Callable[[Options, int], Crew],
        record: Path,
        resume: bool,
    ) -> Iterator[UserResult]:
        """Yield each user's result."""
        record.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(record, wait=False, keep=False))
            except BlockingIOError:
                raise TrainError(
                    f"another run writes {record}: wait for it, or choose another place"
                ) from None
            known = _Known(record)
            done = known.of_this_run(self._there) if resume else set()
            self._report({"event": "users", "users": len(users), "done": len(done & users.keys())})
            log = stack.enter_context(closing(known.begin(resume)))
            jobs, settled = deque[Job](), list[UserResult]()
            for user in users:
                if user in done:
                    continue
                first = self._first(user, users[user], known.rows.get(user))
                if isinstance(first, Job):
                    jobs.append(first)
                else:
                    settled.append(first)
            for each in settled:
                yield _written(log, each)
            if not jobs:
                return
            stack.enter_context(first_interrupt(self._stop))
            if self._options.whitening is None:
                self._whiten(jobs, crew)
            if self._stopping:
                return
            workers = stack.enter_context(closing(crew(self._options, len(jobs))))
            for job, answer in self._answers(jobs, workers):
                yield self._finish(job, answer, log)

    def _stop(self) -> None:
        self._stopping = True
        self._report({"event": "stopping"})

    def _first(
        self, user: str, texts: Sequence[str] | TrainError, before: UserResult | None
    ) -> Job | UserResult:
        """Return the job of a user, or the result where there is nothing to learn."""
        failed = UserResult(user=user, status="failed")
        if not is_portable(user) or user == DEFAULT_USER:
            why = f"{user[:80]!r} is not a valid user: {RULE}, and not {DEFAULT_USER!r}"
            return replace(failed, why=why)
        if isinstance(texts, TrainError):
            return replace(failed, why=str(texts))
        if len(texts) < FEWEST:
            return replace(failed, why=f"{len(texts)} texts, and at least {FEWEST} are needed: add more")
        data = self._digest(texts)
        if before is not None and before.data == data and self._there(before):
            return replace(before, status="unchanged", why="", seconds=0.0)
        return Job(user, tuple(texts), self._evaluate)

    def _digest(self, texts: Sequence[str]) -> str:
        return hashlib.sha256(json.dumps([*self._with, *texts]).encode()).hexdigest()

    def _there(self, row: UserResult) -> bool:
        """Whether the frame that a line of the report tells of has arrived, or a newer one. True where the
        line tells of no frame, unless the user failed."""
        if row.status == "failed" or row.sequence is None:
            return row.status != "failed"
        try:
            found = self._target.last(row.user)
        except (TinyLoraError, OSError):
            return False  # publishing will meet the same error, and report it
        return found is not None and found >= row.sequence

    def _whiten(self, jobs: Sequence[Job], crew: Callable[[Options, int], Crew]) -> None:
        """Make the whitening of the last texts of all users, as many of each."""
        each = -(-OTHERS // len(jobs))
        texts = tuple(text for job in jobs for text in job.texts[-each:])
        with closing(crew(for_whitening(self._options, self._bases), 1)) as workers:
            ((_, made),) = self._answers(deque([Job("", texts)]), workers)
        if isinstance(made, Failed):
            raise TrainError(f"the whitening of the shared vector cannot be made: {made.why}")
        self._options = replace(self._options, whitening=made)
        self._report({"event": "whitening", "data": made})

    def _answers(self, jobs: deque[Job], workers: Crew) -> Iterator[tuple[Job, Any]]:
        """Yield the answers to jobs; a job whose worker was lost is given to another.

        A run that is stopping waits for the jobs at hand, and gives none of those of users.
        """
        lost: dict[str, int] = {}
        busy = 0

        def more() -> bool:
            return bool(jobs) and not (self._stopping and jobs[0].user)

        while True:
            while workers.free and more():
                job = jobs.popleft()
                try:
                    self._last[job.user] = self._target.last(job.user) if job.user else None
                except (TinyLoraError, OSError) as error:
                    yield job, Failed(str(error))
                    continue
                workers.give(job)
                busy += 1
            if not busy and not more():
                return
            if (found := workers.take()) is None:
                continue
            busy -= 1
            job, answer = found
            if isinstance(answer, Failed) and answer.lost:
                lost[job.user] = lost.get(job.user, 0) + 1
                if lost[job.user] < TRIES:
                    jobs.append(job)
                    continue
            yield job, answer

    def _finish(self, job: Job, answer: Learned | Failed, log: IO[bytes]) -> UserResult:
        """Publish what was learned of a user, and return their result, which the report has then."""
        row = UserResult(user=job.user, status="failed", texts=len(job.texts), data=self._digest(job.texts))
        if isinstance(answer, Failed):
            return _written(log, replace(row, why=answer.why))
        ends = [round(answer.losses[number], 4) for number in (0, -1)]
        row = replace(
            row,
            tokens=answer.tokens,
            steps=len(answer.losses),
            loss=ends,
            gain=answer.gain,
            seconds=round(answer.seconds, 1),
        )
        if answer.gain is not None and answer.gain <= 0:
            return _written(log, replace(row, status="kept"))
        last = self._last[job.user]
        try:
            if last == LAST_SEQUENCE:
                raise FrameError(f"sequence {last} is the last: the user goes on under another name")
            sequence = FIRST_SEQUENCE if last is None else last + 1
            vector = MicroVector(answer.values, basis=self._basis.digest)
            vector = replace(self._options, sequence=sequence).framed(vector, self._basis)
            frame = vector.to_bytes(self._basis, self._signer, user=job.user)
            row = replace(row, status="learned", sequence=sequence, bytes=len(frame))
            _written(log, row)
            if not self._target.put_newer(job.user, frame):
                row = _written(log, replace(row, status="overtaken", sequence=None, bytes=0))
        except (TinyLoraError, OSError) as error:
            row = _written(log, replace(row, status="failed", why=str(error), sequence=None, bytes=0))
        return row


class _Known:
    """The report of the runs before: JSON lines, of which a user's last one counts."""

    def __init__(self, path: Path) -> None:
        self._path, self.rows, self._earlier = path, dict[str, UserResult](), set[str]()
        try:
            with open_file(path) as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return
        for number, line in enumerate(lines[:-1], 1):  # the last one is empty, or was not finished
            try:
                values = parse_json(line)
                earlier = values.pop("earlier", False)
                row = restored(UserResult, values)
            except (ValueError, AttributeError, TypeError) as error:
                raise TrainError(f"{path}:{number}: it is no report of `train`: {error}") from None
            self.rows[row.user] = row
            (self._earlier.add if earlier else self._earlier.discard)(row.user)

    def of_this_run(self, there: Callable[[UserResult], bool]) -> set[str]:
        """Return the users that the last run is done with: those that failed, and those whose frames are
        `there`."""
        own = [row for user, row in self.rows.items() if user not in self._earlier]
        return {row.user for row in own if row.status == "failed" or there(row)}

    def begin(self, resume: bool) -> IO[bytes]:
        """Write the report anew with what is known, as `earlier` unless the run resumes; return it, open to
        append."""
        with atomic_write(self._path, mode=0o600) as file:  # the names of users are private
            for user, row in self.rows.items():
                earlier = not resume or user in self._earlier
                file.write(_line(row, {"earlier": True} if earlier else {}))
        return open(self._path, "ab")


def _line(row: UserResult, more: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain({**asdict(row), **more})) + "\n").encode()


def _written(log: IO[bytes], row: UserResult) -> UserResult:
    """Write a line of the report durably, and return its row."""
    log.write(_line(row, {}))
    log.flush()
    os.fsync(log.fileno())
    return row
