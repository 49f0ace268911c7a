"""GSM8K, grade school word problems (Cobbe et al. 2021, MIT licence): from the hub, or from a JSONL file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, TrainError
from ._jsonl import read_objects
from ._split import split_by_prompt
from .rewards.numbers import final_number
from .task import Sample

INSTRUCTION = "Put your final answer after ####."
"""Stands behind every problem, after a blank line."""

REPOSITORY = "openai/gsm8k"
_FILES = {"train": "main/train-00000-of-00001.parquet", "test": "main/test-00000-of-00001.parquet"}
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations for a calculator, not part of the solution's text


def read_file(path: Path) -> tuple[list[Sample], list[Sample]]:
    """Return training and held-out samples of a JSONL file with the keys `question` and `answer`.

    A fifth of the distinct problems, about, is held out, chosen by their hash.

    Raises:
        TrainError: the file cannot be read, or a line has no question, or no answer that ends in `#### n`.
    """
    return split_by_prompt([_sample(place, row) for place, row in read_objects(path)])


def read_hub() -> tuple[list[Sample], list[Sample]]:
    """Return the samples of the data set on the hub: its train split, and its test split as held out.

    Raises:
        MissingExtraError: huggingface_hub or pyarrow is not installed.
        TrainError: the files can neither be found in the hub's cache nor downloaded.
    """
    return _read_parquet("train"), _read_parquet("test")


def _read_parquet(split: str) -> list[Sample]:
    try:
        import huggingface_hub
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if error.name not in ("huggingface_hub", "pyarrow", "pyarrow.parquet"):
            raise
        package = "huggingface-hub" if error.name == "huggingface_hub" else "pyarrow"
        raise MissingExtraError("the gsm8k task from the hub", package, "train") from None
    try:
        path = huggingface_hub.hf_hub_download(REPOSITORY, _FILES[split], repo_type="dataset")
        rows = pyarrow.parquet.read_table(path, columns=["question", "answer"]).to_pylist()
    # The hub's client lets through what its HTTP library raises, which is another one in each version.
    except Exception as error:
        raise TrainError(
            f"gsm8k: cannot get {_FILES[split]} of {REPOSITORY} from the hub: {error}. "
            "Without a network use a local copy: gsm8k:PATH.jsonl"
        ) from error
    return _samples(f"{REPOSITORY}/{_FILES[split]}", rows)


def _samples(source: str, rows: Iterable[dict[str, Any]]) -> list[Sample]:
    return [_sample(f"{source}:{number}", row) for number, row in enumerate(rows, 1)]


def _sample(place: str, row: dict[str, Any]) -> Sample:
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise TrainError(
                f'{place}: no "{key}" with text in it, expected the keys "question" and "answer"'
            )
    solution = _CALCULATOR.sub("", row["answer"]).strip()
    if "####" not in solution or final_number(solution) is None:
        raise TrainError(
            f"{place}: the answer ends in {solution[-40:]!r}, expected '#### n' with one number at its end"
        )
    message = {"role": "user", "content": f"{row['question'].strip()}\n\n{INSTRUCTION}"}
    return Sample((message,), solution, {"question": row["question"].strip()})
