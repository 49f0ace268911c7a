"""The store of a million users' vectors: how fast it is filled, and how soon a user's vector is at hand.

* an import of all of them in lines of JSON, in users a second;
* a look-up of a random user, alone, and with the policy's check that every request makes.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import SCALES, export

from tinylora_edge import Basis, Hmac, MicroVector, Policy
from tinylora_edge.serve.store import SqliteStore, Stored, read_lines, write_lines

KEY = Hmac(bytes(range(32)))
LOOKUPS = 2_000
LEAST_PER_SECOND, MOST_MS = 50_000, 1.0


def frames(basis: Basis, users: int) -> Iterator[Stored]:
    """Frames of so many users; a thousand vectors take turns."""
    made = [
        MicroVector(np.array(MicroVector.random(basis, 1.0, seed=n).values), "bf16").to_bytes(
            basis, tag=KEY, version=1
        )
        for n in range(1_000)
    ]
    yield from (Stored(f"user{n:07}", made[n % 1_000], 1) for n in range(users))


def imported(store: SqliteStore, lines: Path) -> tuple[float, float]:
    """Seconds to import a file, and seconds of a core that it took."""
    before = time.process_time()
    with lines.open("rb") as file, bench.stopwatch() as watch:
        done = store.import_frames(read_lines(file, lines.name))
    core = time.process_time() - before
    if done.added + done.unchanged == 0:
        raise SystemExit("nothing was imported")
    return watch.seconds, core


def looked_up(store: SqliteStore, basis: Basis, users: int, policy: Policy | None) -> list[float]:
    """Seconds of each of many look-ups of random users."""
    draw, times = random.Random(0), []
    for _ in range(LOOKUPS):
        user = f"user{draw.randrange(users):07}"
        with bench.stopwatch() as watch:
            stored = store.get(user)
            assert stored is not None
            if policy is not None:
                policy.check(stored.frame, basis, stream=user)
        times.append(watch.seconds)
    return times


def main() -> int:
    parser = bench.parser(__doc__, rounds=1)
    parser.add_argument("--users", type=int, default=1_000_000, help="users of the store (%(default)s)")
    options = parser.parse_args()
    report = bench.Report("store", options.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, basis = export(folder, SCALES)
        lines = folder / "users.jsonl"
        with lines.open("wb") as file:
            file.writelines(write_lines(frames(basis, options.users)))
        seconds = []
        for number in range(options.rounds):
            store = SqliteStore(folder / f"users{number}.db", basis)
            seconds.append(imported(store, lines))
        policy = Policy(keys=[KEY], state=store.marks)
        alone, checked = (looked_up(store, basis, options.users, each) for each in (None, policy))
        store.close()  # what the log still holds goes into the file
        size = (folder / f"users{number}.db").stat().st_size
    rate, core_rate = (options.users / min(each) for each in zip(*seconds, strict=True))
    figures = {"look-up": bench.summarize(alone), "look-up and check": bench.summarize(checked)}
    rows = [[k, *(f"{1000 * f[x]:.4f}" for x in ("min", "median", "p95"))] for k, f in figures.items()]
    report.say(f"\n{options.users:,} users, {size / options.users:.0f} bytes each; ms a request\n")
    report.say(bench.table(["request", "min", "median", "p95"], rows))
    report.record |= {"users": options.users, "bytes": size, "per_second": rate, "seconds": figures}
    report.record["per_core_second"] = core_rate
    report.say(f"\nimport, users a second of a core: {core_rate:,.0f}")
    report.target("import, users a second", rate, ">=", LEAST_PER_SECOND)
    report.target("look-up, p95 in ms", 1000 * figures["look-up"]["p95"], "<=", MOST_MS)
    report.target("look-up and check, p95 in ms", 1000 * figures["look-up and check"]["p95"], "<=", MOST_MS)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
