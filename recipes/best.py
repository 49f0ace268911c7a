"""Of a sweep's vectors, the one with the best validation: its path, on stdout.

    python recipes/best.py v-0.bin v-1.bin v-2.bin

reads what each run wrote beside its vector, `v-0.bin.json`. Validation prompts are training prompts that were
held back, so that a step size is never chosen by the test split.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def validation(vector: Path) -> float:
    """Return the best mean reward on validation prompts of the run that wrote a vector."""
    score: float = json.loads(vector.with_name(f"{vector.name}.json").read_text("utf-8"))["result"][
        "best_score"
    ]
    return score


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Name the vector of a sweep with the best validation.")
    parser.add_argument("vectors", type=Path, nargs="+", help="with FILE.json beside each")
    vectors = parser.parse_args().vectors
    scores = [validation(vector) for vector in vectors]
    for vector, score in zip(vectors, scores, strict=True):
        print(f"{vector}: {score:.4f} on validation prompts", file=sys.stderr)
    print(vectors[scores.index(max(scores))])


if __name__ == "__main__":
    main()
