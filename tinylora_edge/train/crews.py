"""Workers that learn users' texts: processes of this machine, or actors of a Ray cluster.

A worker loads model, engine and whitening once, and takes one job after the other. A worker that dies loses
its own job alone, which the driver of the crew gives to another.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from ..errors import MissingExtraError, TinyLoraError, TrainError
from ..tasks import Sample
from .options import Options
from .texts import Learned, Texts, tenth

_LOADS = 3  # workers in a row that die while they load the model end the run
_END_S = 30  # most that a free worker takes to end by itself


@dataclass(frozen=True)
class Job:
    """A user's texts. With `evaluate` their gain is measured; without a user a whitening is made of them."""

    user: str
    texts: Sequence[str]
    evaluate: bool = False


@dataclass(frozen=True)
class Failed:
    """Why a job has no result. Where its worker was `lost`, another worker may do the job."""

    why: str
    lost: bool = False


class Worker:
    """What runs in a process or an actor: a model that learns the texts of one user after another."""

    def __init__(self, bundle: str, options: Options) -> None:
        self._setup = bundle, options
        self._texts: Texts | None = None

    def load(self) -> str:
        """Load the model; return what is wrong, or nothing."""
        try:
            self._texts = Texts(*self._setup)
        except (TinyLoraError, OSError) as error:
            return str(error)
        return ""

    def answer(self, job: Job) -> Learned | Failed | bytes:
        """Return what was learned of a user, or the file of a whitening. An error is returned as `Failed`."""
        samples = [Sample("", text, raw=True) for text in job.texts]
        try:
            assert self._texts is not None
            if not job.user:
                return self._texts.whitening(samples)
            return self._texts.learn(samples, tenth(samples) if job.evaluate else ())
        except TinyLoraError as error:
            return Failed(str(error))
        except Exception as error:  # one user's error must not end the others' learning
            return Failed(f"{type(error).__name__}: {error}")


class Crew(Protocol):
    """Workers, of which some are free."""

    @property
    def free(self) -> int:
        """How many workers wait for a job."""

    def give(self, job: Job) -> None:
        """Hand a job to one that is free."""

    def take(self) -> tuple[Job, Any] | None:
        """Wait for the next answer (`Worker.answer`), or until a worker has loaded its model: None.

        TrainError: a worker cannot load the model.
        """

    def close(self) -> None:
        """End all workers, and what they do."""


@dataclass
class _Member:
    process: Any
    connection: Connection
    loaded: bool = False
    job: Job | None = None


class Processes:
    """Worker processes of this machine, a core each."""

    def __init__(self, bundle: str, options: Options, count: int) -> None:
        self._setup, self._unlucky = (bundle, options), 0
        self._members = [self._start() for _ in range(count)]

    def _start(self) -> _Member:
        # Not by fork, which would copy locks of libraries' threads without the threads.
        context = multiprocessing.get_context("spawn")
        own, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._setup), daemon=True)
        process.start()
        theirs.close()  # else the end of the process would not end `own`
        return _Member(process, own)

    @property
    def free(self) -> int:
        """How many workers wait for a job."""
        return sum(member.loaded and member.job is None for member in self._members)

    def give(self, job: Job) -> None:
        """Hand a job to one that is free."""
        member = next(member for member in self._members if member.loaded and member.job is None)
        member.job = job
        with suppress(OSError):  # the worker died: `take` finds that out
            member.connection.send(job)

    def take(self) -> tuple[Job, Any] | None:
        """Wait for the next answer, or until a worker has loaded its model."""
        ready = wait([member.connection for member in self._members])[0]
        member = next(member for member in self._members if member.connection is ready)
        try:
            found = member.connection.recv()
        except (EOFError, OSError):
            return self._replaced(member)
        if not member.loaded:
            if found:
                raise TrainError(found)
            member.loaded, self._unlucky = True, 0
            return None
        job, member.job = member.job, None
        return None if job is None else (job, found)

    def _replaced(self, member: _Member) -> tuple[Job, Failed] | None:
        member.connection.close()
        member.process.join()
        why = f"its worker process ended with {member.process.exitcode}"
        self._unlucky += not member.loaded
        if self._unlucky == _LOADS:
            raise TrainError(f"{_LOADS} workers in a row died while they loaded the model: {why}")
        self._members[self._members.index(member)] = self._start()
        return None if member.job is None else (member.job, Failed(why, lost=True))

    def close(self) -> None:
        """End all workers, and what they do."""
        for member in self._members:
            if member.job is not None or not member.loaded:
                member.process.kill()
            member.connection.close()  # a free one ends by itself, and removes its semaphores
        for member in self._members:
            member.process.join(_END_S)
            member.process.kill()
            member.process.join()


def _serve(connection: Connection, bundle: str, options: Options) -> None:
    """Run in a worker process: answer jobs until the driver's end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver alone
    worker = Worker(bundle, options)
    with suppress(EOFError, OSError):
        connection.send(worker.load())
        while True:
            connection.send(worker.answer(connection.recv()))


class Cluster:
    """Actors of a Ray cluster, each with a core. An actor that dies is replaced, on any node that has room.

    Args:
        bundle, options: of the workers.
        address: of the cluster, as `ray.init` takes it; a program that is connected already stays connected.
        count: actors; 0: as many as the cluster has cores.
        most: most actors that there is work for.

    MissingExtraError: Ray is not installed. TrainError: the cluster cannot be reached.
    """

    def __init__(self, bundle: str, options: Options, address: str, count: int, most: int) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("learning on a cluster", "ray", "ray") from None
        self._ray: Any = ray
        self._own, self._unlucky = not ray.is_initialized(), 0
        if self._own:
            try:
                ray.init(address=address, log_to_driver=False)
            except Exception as error:  # Ray raises errors of several types
                raise TrainError(f"there is no Ray cluster at {address}: {error}") from error
        self._setup = bundle, ray.put(options)
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(Worker)
        self._asked: dict[Any, tuple[Any, Job | None]] = {}  # what an actor computes -> the actor and its job
        self._idle: list[Any] = []
        for _ in range(min(count or int(ray.cluster_resources().get("CPU", 1)), most)):
            self._start()

    def _start(self) -> None:
        actor = self._actor.remote(*self._setup)
        self._asked[actor.load.remote()] = actor, None

    @property
    def free(self) -> int:
        """How many workers wait for a job."""
        return len(self._idle)

    def give(self, job: Job) -> None:
        """Hand a job to one that is free."""
        actor = self._idle.pop()
        self._asked[actor.answer.remote(job)] = actor, job

    def take(self) -> tuple[Job, Any] | None:
        """Wait for the next answer, or until a worker has loaded its model."""
        (ready,), _ = self._ray.wait([*self._asked])
        actor, job = self._asked.pop(ready)
        try:
            found = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            why = f"its worker was lost: {type(error).__name__}"
            self._unlucky += job is None
            if self._unlucky == _LOADS:
                raise TrainError(f"{_LOADS} workers in a row died while they loaded the model") from error
            self._start()  # Ray places it once a node has room
            return None if job is None else (job, Failed(why, lost=True))
        if job is None and found:
            raise TrainError(found)
        self._unlucky = 0
        self._idle.append(actor)
        return None if job is None else (job, found)

    def close(self) -> None:
        """End all workers, and what they do."""
        for actor in [*self._idle, *(actor for actor, _ in self._asked.values())]:
            self._ray.kill(actor)
        if self._own:
            self._ray.shutdown()
