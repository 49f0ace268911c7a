"""What a device spends on the bytes of a vector before it touches the model.

* from bytes to a checked micro-vector, for every form, against the bare check of its tag;
* the same with a state file, which is looked at for every frame, and written when a sequence rises.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _subjects import SCALES, export
from cryptography.hazmat.primitives.asymmetric import ed25519

from tinylora_edge import (
    Basis,
    Ed25519Signer,
    Ed25519Verifier,
    Hmac,
    MicroVector,
    Policy,
    SignatureError,
    UnauthenticatedVectorWarning,
)
from tinylora_edge.wire import days, frame

KEY = bytes(range(32))
DTYPES = ("fp32", "bf16", "int8")
STREAM = "alice"
FORMS = ("raw payload", "CRC-32", "HMAC", "Ed25519")
SIGNED, STATE = "Ed25519", "with a state file"
BOUNDS_MS = {"raw payload": 0.1, "CRC-32": 0.1, SIGNED: 1.0}


def timed(call: Callable[[], object], calls: int) -> Callable[[], float]:
    """Seconds of one call, as the mean of many: one alone is near the clock's own grain."""

    def run() -> float:
        with bench.stopwatch() as watch:
            for _ in range(calls):
                call()
        return watch.seconds / calls

    return run


def refusal(policy: Policy, data: bytes, basis: Basis) -> Callable[[], object]:
    def call() -> None:
        try:
            policy.check(data, basis)
        except SignatureError:
            return
        raise SystemExit("a forged frame was accepted")

    return call


def contestants(basis: Basis, folder: Path, calls: int) -> dict[str, Callable[[], float]]:
    signer = Ed25519Signer(KEY)
    keys = [Hmac(KEY), Ed25519Verifier(signer.public_key)]
    policy, kept = Policy("none", keys=keys), Policy("none", keys=keys, state=folder / "state")
    bare = ed25519.Ed25519PublicKey.from_public_bytes(signer.public_key)
    signers = dict(zip(FORMS, (None, "crc32", Hmac(KEY), signer), strict=True))
    found: dict[str, Callable[[], float]] = {}
    for dtype in DTYPES:
        vector = MicroVector.random(basis, 0.3, seed=1, dtype=dtype)
        for form in FORMS:
            if dtype == "int8" and form == "raw payload":
                continue
            data = vector.to_bytes(basis, signers[form], stream=STREAM)
            call = lambda data=data: policy.check(data, basis, stream=STREAM)  # noqa: E731
            found[f"{dtype}, {form}"] = timed(call, calls)
    dated = MicroVector.random(basis, 0.3, seed=1, dtype="int8")
    data = dated.to_bytes(basis, signer, stream=STREAM, until=days.LAST)
    found[f"int8, {SIGNED}, with a last day"] = timed(lambda: policy.check(data, basis, stream=STREAM), calls)
    signed = MicroVector.random(basis, 0.3, seed=1).to_bytes(basis, signer)
    message, tag = frame.message(2, "", bytes.fromhex(basis.digest), signed[:-64]), signed[-64:]
    kept.record(kept.check(signed, basis), basis)
    found[f"fp32, {SIGNED}, {STATE}"] = timed(lambda: kept.check(signed, basis), calls)
    stranger = MicroVector.random(basis, 0.3, seed=1).to_bytes(basis, Ed25519Signer(bytes(32)))
    found[f"fp32, {SIGNED}, forged: refused"] = timed(refusal(policy, stranger, basis), calls)
    found["CRC-32 alone (zlib)"] = timed(lambda: zlib.crc32(message), calls)
    found["HMAC alone (hashlib)"] = timed(lambda: hmac.digest(KEY, message, hashlib.sha256), calls)
    found["Ed25519 alone (cryptography)"] = timed(lambda: bare.verify(tag, message), calls)
    return found


def records(basis: Basis, folder: Path) -> Callable[[], float]:
    """Seconds to make a higher sequence durable: lock, write, two fsyncs, rename."""
    policy = Policy(state=folder / "rising")
    numbers = itertools.count(1)
    values = MicroVector.random(basis, 0.3).values

    def run() -> float:
        vector = MicroVector(values, sequence=next(numbers))
        with bench.stopwatch() as watch:
            policy.record(vector, basis)
        return watch.seconds

    return run


def main() -> int:
    parser = bench.parser(__doc__, rounds=25)
    parser.add_argument("--calls", type=int, default=200, help="calls a round (%(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UnauthenticatedVectorWarning)  # raw payloads are part of the race
    report = bench.Report("frames", options.json)
    with tempfile.TemporaryDirectory() as name:
        _, basis = export(Path(name), SCALES)
        racing = contestants(basis, Path(name), options.calls)
        racing["a sequence made durable"] = records(basis, Path(name))
        times = bench.interleave(racing, options.rounds, warmup=2)
    figures: dict[str, Any] = {name: bench.summarize(values) for name, values in times.items()}
    rows = [
        [name, f"{1000 * f['min']:.4f}", f"{1000 * f['median']:.4f}", f"{1000 * f['p95']:.4f}"]
        for name, f in figures.items()
    ]
    report.say(f"\n{basis.size} values, ms from bytes to a checked vector, {options.calls} calls a round\n")
    report.say(bench.table(["form", "min", "median", "p95"], rows))
    report.record["milliseconds"] = {
        name: {key: value if key == "rounds" else 1000 * value for key, value in f.items()}
        for name, f in figures.items()
    }
    alone = figures["Ed25519 alone (cryptography)"]["median"]
    ratio = figures[f"fp32, {SIGNED}"]["median"] / alone
    report.record["signed_over_bare_verification"] = ratio
    report.say(f"\na signed frame takes {ratio:.2f} times the bare verification of its signature")
    for form, bound in BOUNDS_MS.items():
        found = (figures.get(f"{dtype}, {form}") for dtype in DTYPES)
        slowest = max(1000 * each["median"] for each in found if each)
        report.target(f"{form}: parse and verify, ms", slowest, "<=", bound)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
