"""The choice among a sweep's vectors: the path of the one with the best validation, on stdout.

    python -m tinylora_edge.train.trl.choice v-0.bin v-1.bin v-2.bin

reads what each run wrote beside its vector, `v-0.bin.json`. Validation prompts are training prompts that were
held back, so that a step size is never chosen by the test split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...documents import read_json
from ...errors import TrainError


def validation(vector: Path) -> float:
    """Return the best mean reward on validation prompts of the run that wrote a vector.

    Raises:
        TrainError: there is no record of the run beside it, or one without a validation.
    """
    record = vector.with_name(f"{vector.name}.json")
    try:
        return float(read_json(record)["result"]["best_score"])
    except OSError as error:
        raise TrainError(f"{record}: cannot read the record of the run: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise TrainError(f"{record}: this is no record of a run with a validation") from None


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tinylora_edge.train.trl.choice",
        description="Name the vector of a sweep with the best validation.",
    )
    parser.add_argument("vectors", type=Path, nargs="+", help="with FILE.json beside each")
    vectors = parser.parse_args().vectors
    try:
        scores = [validation(vector) for vector in vectors]
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for vector, score in zip(vectors, scores, strict=True):
        print(f"{vector}: {score:.4f} on validation prompts", file=sys.stderr)
    print(vectors[scores.index(max(scores))])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
