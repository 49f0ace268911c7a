r"""The task files of GSM8K and MATH, and the reward of MATH.

    python recipes/problems.py train.jsonl --test test.jsonl -o math.jsonl

reads files with a problem on each line, as they are commonly distributed, and writes a task file: each
problem with an instruction, and its answer. MATH (Hendrycks et al. 2021) has the keys `problem` and
`solution`; the answer is the content of the last `\boxed{}` of the solution. GSM8K (Cobbe et al. 2021) has
the keys `question` and `answer`; its answer is a solution that ends in `#### n`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylora_edge.tasks import Completion, Sample

MATH = r"Reason step by step, and put your final answer within \boxed{}."
GSM8K = "Put your final answer after ####."
"""What stands behind every problem, after a blank line."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations of GSM8K for a calculator, no part of the text
_BOX = re.compile(r"\\f?boxed\s*\{")
_WRITTEN_ALIKE = (
    (r"\\[dt]frac", r"\\frac"),
    (r"\\(left|right|displaystyle|limits)(?![a-zA-Z])", ""),
    (r"\\[!,;: ]|\\q?quad|~", ""),
    (r"\\(text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\2"),
    (r"\^\s*\{?\\circ\}?|\\(degree|%|\$)|[%$]", ""),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\s+", ""),
    (r"(?<!\d)\.(?=\d)", "0."),
    (r"\.$", ""),
)
"""Pattern and replacement, in order: what is only another way to write the same."""


def boxed(completion: Completion, sample: Sample) -> float:
    r"""1 if the last `\boxed{}` of the answer holds the reference answer, written alike.

    Raises:
        ValueError: the sample has no answer.
    """
    if sample.answer is None:
        raise ValueError("boxed needs a sample with an answer")
    found = last_box(completion.text)
    return float(found is not None and plain(found) == plain(sample.answer))


def last_box(text: str) -> str | None:
    r"""Return what the last complete `\boxed{}` that is not empty holds, or None."""
    for match in reversed(list(_BOX.finditer(text))):
        depth, start = 1, match.end()
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                if text[start:end].strip():
                    return text[start:end]
                break
    return None


def plain(answer: str) -> str:
    """Return an answer without what LaTeX allows to write in several ways."""
    for pattern, replacement in _WRITTEN_ALIKE:
        answer = re.sub(pattern, replacement, answer)
    return answer


def task_rows(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a task from a file of problems; those without a boxed answer are left out."""
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if "question" in row:
                problem, instruction = row["question"], GSM8K
                answer = _CALCULATOR.sub("", row["answer"]).strip()
            else:
                problem, instruction, answer = row["problem"], MATH, last_box(row["solution"])
            if answer is not None:
                messages = [{"role": "user", "content": f"{problem.strip()}\n\n{instruction}"}]
                yield {"messages": messages, "answer": answer, "split": split}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a task file from GSM8K or MATH.")
    parser.add_argument("train", type=Path, help="JSONL, a problem a line")
    parser.add_argument("--test", type=Path, required=True, help="the same, to be held out")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    held_out = list(task_rows(args.test, "held_out"))
    known = {row["messages"][0]["content"] for row in held_out}
    train = [row for row in task_rows(args.train, "train") if row["messages"][0]["content"] not in known]
    args.output.write_text("".join(json.dumps(row) + "\n" for row in [*train, *held_out]), "utf-8")
    print(f"{args.output}: {len(train)} to train on, {len(held_out)} held out", file=sys.stderr)


if __name__ == "__main__":
    main()
