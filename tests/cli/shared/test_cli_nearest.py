"""What was meant by a mistyped name: the nearest in its folder, and nothing where nothing is near."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinylora_edge.cli.commands.bundles.export import ExportFormat
from tinylora_edge.cli.shared.nearest import guess, nearest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "demo_out").mkdir()
    for name in ("vector.bin", "base.gguf", ".hidden.bin"):
        (tmp_path / "demo_out" / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("demo_ot", "demo_out"),
        ("Demo-Out", "demo_out"),
        ("demo_out/vectr.bin", "demo_out/vector.bin"),
        ("demo_ot/vector.bin", "demo_out/vector.bin"),
        ("demo_ot/vectr.bin", "demo_out"),  # as far as it is known
        ("demo_out/hidden.bin", None),
        ("somewhere/else", None),
        ("demo_out", None),  # it is there: something else is wrong
    ],
)
def test_a_file(folder: Path, typed: str, meant: str | None) -> None:
    error = FileNotFoundError(2, "No such file or directory", str(folder / typed))
    expected = None if meant is None else str(folder / meant)
    assert guess(error, {"vector": folder / typed, "other": 3, "none": None}) == expected
    assert (
        guess(FileNotFoundError(f"{folder / typed} does not exist"), {"bundle": folder / typed}) == expected
    )


def test_only_what_the_error_is_about_is_guessed(folder: Path) -> None:
    assert guess(FileNotFoundError("another thing"), {"vector": folder / "demo_ot"}) is None


def test_a_relative_name_and_a_list_of_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    error = FileNotFoundError(2, "No such file or directory", "demo_ut")
    assert guess(error, {"keys": [Path("demo_out"), Path("demo_ut")]}) == "demo_out"


def test_a_choice_is_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("m.gguf").touch()
    values = {"model": "another-model-altogether.gguf", "target_format": ExportFormat.gguf}
    assert guess(FileNotFoundError("another-model-altogether.gguf does not exist"), values) is None


def test_a_task_before_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("brevite").touch()
    assert guess(ValueError("no task and no file 'brevty'"), {"task": "brevty"}) == "brevity"


def test_nearest_looks_past_capitals() -> None:
    assert nearest("List-Lokup", ["list-lookup", "records"]) == "list-lookup"
    assert nearest("xyz", ["list-lookup"]) is None
    assert nearest("same", ["same"]) is None
