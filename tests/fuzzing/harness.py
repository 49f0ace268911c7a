"""A harness: one reader, what is thrown at it, and what must hold whatever that is.

A harness is a function of bytes. Nothing here needs atheris: `campaign` drives harnesses with it for hours,
`test_fuzzing` with a seeded mutator for seconds, and what one finds the other repeats.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

from mutations import damaged

from tinylora_edge import TinyLoraError

LARGEST = 1 << 20
"""Bytes of an input. For what is shorter, `SECONDS` and `MEMORY` hold."""
SECONDS = 1.0
MEMORY = 64 << 20

CORPUS = Path(__file__).with_name("corpus")


def _as_it_is(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Harness:
    """One reader under attack.

    Attributes:
        name: of the reader, as the command line and the corpus have it.
        make: returns what the reader takes, from random numbers: sometimes as it should be, and mostly with
            parts changed, and its checksums made to match.
        read: reads bytes. It raises a `TinyLoraError`, or returns and has checked what came out.
        mend: makes the checksums of damaged bytes match again, where it still knows how.
    """

    name: str
    make: Callable[[Random], bytes]
    read: Callable[[bytes], object]
    mend: Callable[[bytes], bytes] = field(default=_as_it_is)

    def accepts(self, data: bytes) -> bool:
        """Read bytes, and tell whether they were accepted. Any other error than ours passes through."""
        try:
            self.read(data)
        except TinyLoraError:
            return False
        return True

    def mutated(self, data: bytes, random: Random) -> bytes:
        """Return an input that is made anew, or other bytes damaged; mostly with its checksums mended."""
        if random.random() < 0.4:
            return self.make(random)[:LARGEST]
        changed = damaged(data, random, LARGEST)
        return self.mend(changed) if random.random() < 0.7 else changed

    def corpus(self) -> list[bytes]:
        """Return the inputs that are checked in: what a campaign kept, or once broke the reader."""
        path = CORPUS / f"{self.name}.txt"
        lines = path.read_text("ascii").splitlines() if path.exists() else []
        return [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]

    def cases(self, count: int, seed: int = 0) -> Iterator[bytes]:
        """Yield the corpus, and then so many inputs that follow from the seed."""
        known = self.corpus()
        yield from known
        random = Random(f"{self.name} {seed}")
        known += [self.make(random) for _ in range(8)]
        for _ in range(count):
            case = self.mutated(random.choice(known), random)
            if random.random() < 0.1:  # damage on damage
                known[random.randrange(len(known))] = case
            yield case


@cache
def folder() -> Path:
    """Return a folder of this process for readers that take paths, in memory where the system has that."""
    memory = Path("/dev/shm")
    where = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="tinylora-fuzzing-")
    _kept.append(where)
    return Path(where.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []
