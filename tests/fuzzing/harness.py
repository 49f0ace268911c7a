"""A harness: one reader, and what is thrown at it. `campaign` drives them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import support
from mutations import damaged

from tinylora_edge import TinyLoraError

LARGEST = 1 << 20
"""Bytes of an input."""


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
    mend: Callable[[bytes], bytes] = bytes

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

    def seeds(self) -> list[bytes]:
        """Return the inputs that are checked in, a line each in hexadecimal, and some that are made."""
        path = Path(__file__).with_name("corpus") / f"{self.name}.txt"
        lines = path.read_text("ascii").split() if path.exists() else []
        return [*map(bytes.fromhex, lines), *(self.make(Random(number)) for number in range(8))]

    def cases(self, seed: int) -> Iterator[bytes]:
        """Yield the seeds, and then inputs without end, which follow from a number."""
        known, random = self.seeds(), Random(f"{self.name} {seed}")
        yield from known
        while True:
            case = self.mutated(random.choice(known), random)
            if random.random() < 0.1:  # damage on damage
                known[random.randrange(len(known))] = case
            yield case


_directory = cache(support.folder_in_memory)


def folder() -> Path:
    """Return a folder of this process for readers that take paths, in memory where the system has that."""
    return Path(_directory().name)
