"""GSM8K: twenty real problems from a file, and the hub's files from the hub's own cache, offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from answers import completed

from tinylora_edge import MissingExtraError, TrainError
from tinylora_edge.tasks import Sample, Task, load_task
from tinylora_edge.tasks.answers import final_number
from tinylora_edge.tasks.builtin import GSM8K_INSTRUCTION as INSTRUCTION

FILE = Path(__file__).parent.parent / "data" / "gsm8k-20.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
NUMBERS = [72, 10, 5, 42, 624, 35, 48, 16, 41, 990, 121, 5, 5, 10, 5, 85, 25, 8, 6, 150]


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(f"gsm8k:{FILE}")


def samples(task: Task) -> dict[str, Sample]:
    return {sample.data["question"]: sample for sample in (*task.train, *task.held_out)}


def test_a_sample_is_the_problem_with_the_instruction_and_its_solution(task: Task) -> None:
    assert set(samples(task)) == {row["question"] for row in ROWS}
    for question, sample in samples(task).items():
        assert sample.prompt == ({"role": "user", "content": f"{question}\n\n{INSTRUCTION}"},)
    assert samples(task)[ROWS[0]["question"]].answer == (  # without the calculator's annotations
        "Natalia sold 48/2 = 24 clips in May.\n"
        "Natalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
    )


@pytest.mark.parametrize("index", range(20))
def test_numbers_are_found_in_real_solutions(task: Task, index: int) -> None:
    row, number = ROWS[index], NUMBERS[index]
    sample = samples(task)[row["question"]]
    solution = re.sub(r"<<[^<>]*>>", "", row["answer"])
    worked = solution.split("####")[0].rstrip()
    assert final_number(row["answer"]) == number
    for right in (
        solution,
        f"#### {number}.0",
        f"{worked}\nSo \\boxed{{{number:,}}}.",
        f"The answer is {number}.",
    ):
        assert task.score(completed(right), sample) == 1.0
    for wrong in ("", sample.text, row["question"], f"#### {number + 1}", f"{solution}\n#### {number + 1}"):
        assert task.score(completed(wrong), sample) == 0.0
    assert task.score(completed(f"#### {number}", ended=False), sample) == 0.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, 'expected the keys "question" and "answer"'),
        ({"question": " ", "answer": "#### 1"}, 'expected the keys "question" and "answer"'),
        ({"question": "q", "answer": "so 5"}, "the answer ends in 'so 5', expected '#### n'"),
        ({"question": "q", "answer": "#### five"}, "expected '#### n'"),
        ("{", "not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{row if isinstance(row, str) else json.dumps(row)}\n", "utf-8")
    with pytest.raises(TrainError, match=rf"problems\.jsonl:2: .*{message}"):
        load_task(f"gsm8k:{path}")


# From the hub: its client runs for real, offline, on a cache that holds the twenty problems


def offline(home: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_the_hub_files_are_read_from_its_cache(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("huggingface_hub")
    from pyarrow import parquet

    revision = "0" * 40
    repository = tmp_path / "hub" / "datasets--openai--gsm8k"
    folder = repository / "snapshots" / revision / "main"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    for split, rows in (("train", ROWS[:15]), ("test", ROWS[15:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")

    code = (
        "import json; from tinylora_edge.tasks import load_task; task = load_task('gsm8k');"
        "print(json.dumps([[s.data['question'] for s in side] for side in (task.train, task.held_out)]))"
    )
    done = offline(tmp_path, code)
    assert done.returncode == 0, done.stderr
    train, held_out = json.loads(done.stdout)
    assert train == [row["question"] for row in ROWS[:15]]
    assert sorted(held_out) == sorted(row["question"] for row in ROWS[15:])


def test_a_hub_that_cannot_be_reached_points_to_local_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("huggingface_hub")
    code = (
        "from tinylora_edge import TrainError; from tinylora_edge.tasks import load_task\n"
        "try: load_task('gsm8k')\nexcept TrainError as error: print(error)"
    )
    done = offline(tmp_path, code)
    assert "cannot get main/train-00000-of-00001.parquet of openai/gsm8k from the hub" in done.stdout, (
        done.stderr
    )
    assert "gsm8k:PATH.jsonl" in done.stdout


@pytest.mark.parametrize(
    ("module", "package"), [("huggingface_hub", "huggingface-hub"), ("pyarrow", "pyarrow")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    if module == "pyarrow":
        pytest.importorskip("huggingface_hub")
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}.*tinylora-edge\[train\]"):
        load_task("gsm8k")
