"""What the store of a fleet costs: bytes a user, vectors a second, and the look-up of a user's vector.

* `put_many` of signed vectors of three sizes, in SQLite and, with `--postgres`, in an empty database;
* bytes on disk for each user, and in a server's memory for each user whose vector it keeps;
* `Store.admitted`, again (the store says that the kept vector is the newest) and anew (the frame is checked).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _subjects import export

from tinylora_edge import Bases, Basis, Ed25519Signer, Ed25519Verifier, MicroVector, Policy, load_bundle
from tinylora_edge.serve.store import Store, Stored

KEY = Ed25519Signer(bytes(range(32)))
FLEET, SECONDS = 50_000, 120  # vectors, and the seconds in which they should be stored
ASKED = 300  # users whose vectors are looked up
AT_ONCE = 500  # frames that are made, and then stored together


def sizes(bases: Bases) -> dict[str, tuple[Basis, str]]:
    """Return the bases and dtypes of three vectors: 13 numbers, rank 2, and the largest in 4 bits."""
    found = bases.basis(numbers=13), bases.basis(rank=2), bases.basis(rank=bases.factors.shape)
    return {f"{basis.size:,} numbers": (basis, "q4" if basis is found[2] else "int8") for basis in found}


def name(basis: Basis, number: int) -> str:
    return f"{basis.id}.{number:07}"


def frames(basis: Basis, dtype: str, users: range) -> Iterator[tuple[str, bytes]]:
    drawn = MicroVector.random(basis, 3.0)
    vector = replace(drawn, dtype=dtype)
    for number in users:
        user = name(basis, number)
        yield user, vector.to_bytes(basis, KEY, user=user)


def measure(
    where: str, bases: Bases, basis: Basis, dtype: str, users: int, disk: Callable[[], int]
) -> dict[str, Any]:
    put, asked = 0.0, {"again": list[float](), "anew": list[float]()}
    with closing(Store(where, bases)) as store:
        before = disk()
        policies = [Policy(keys=[Ed25519Verifier(KEY.public_key)], state=store.sequences) for _ in range(2)]
        for first in range(0, users, AT_ONCE):
            batch = [*frames(basis, dtype, range(first, min(users, first + AT_ONCE)))]
            with bench.stopwatch() as watch:
                done = [*store.put_many(batch, policies[0])]
            if not all(isinstance(each, Stored) for _, each in done):
                raise SystemExit(f"{where} refused a vector")
            put += watch.seconds
        for number in range(min(users, ASKED)):
            for policy, way in zip((*policies, policies[1]), ("", "anew", "again"), strict=True):
                with bench.stopwatch() as watch:
                    vector = store.admitted(name(basis, number), policy)
                if way:
                    asked[way].append(watch.seconds)
    assert vector is not None
    return {
        "frame": len(batch[0][1]),
        "disk": (disk() - before) / users,
        "memory": vector.r.nbytes + vector.values.nbytes,
        "put": put / users,
        **{way: statistics.median(each) for way, each in asked.items()},
    }


def in_postgres(address: str) -> Callable[[], int]:
    """Return a function that returns the bytes of a database."""
    import psycopg

    def size() -> int:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("VACUUM")
            found = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(found[0]) if found else 0

    return size


def main() -> None:
    arguments = bench.parser(__doc__, rounds=1)
    arguments.add_argument("--bundle", type=Path, metavar="DIR", help="by default SmolLM2 is exported")
    arguments.add_argument("--users", type=int, default=10_000, help="of each size (%(default)s)")
    arguments.add_argument("--postgres", metavar="URL", help="an empty database, too")
    options = arguments.parse_args()
    report = bench.Report("fleet", options.json)
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), []
        bases = load_bundle(options.bundle).bases if options.bundle else export(folder)[1]
        for size, (basis, dtype) in sizes(bases).items():
            path = folder / f"{basis.size}.db"
            places = {"SQLite": (str(path), lambda path=path: path.stat().st_size if path.exists() else 0)}
            if options.postgres:
                places["PostgreSQL"] = options.postgres, in_postgres(options.postgres)
            for database, (where, disk) in places.items():
                found = measure(where, bases, basis, dtype, options.users, disk)
                rows.append({"database": database, "size": size, "users": options.users, **found})
    report.say()
    heads = ["", "frame", "on disk", "in memory", "put ms", "asked again ms", "anew ms"]
    cells = [
        [f"{row['size']}, {row['database']}", *(f"{row[key]:,.0f}" for key in ("frame", "disk", "memory"))]
        + [f"{1e3 * row[key]:.3f}" for key in ("put", "again", "anew")]
        for row in rows
    ]
    report.say(bench.table(heads, cells))
    report.say()
    for row in rows[-len(places) :]:
        bulk = f"{FLEET:,} vectors of {row['frame'] / 1e3:.0f} kB in {row['database']}, seconds"
        report.target(bulk, FLEET * row["put"], SECONDS)
        report.target(f"asked again / anew, {row['database']}", row["again"] / row["anew"], 0.25)
    report.record["rows"] = rows
    report.finish()


if __name__ == "__main__":
    main()
