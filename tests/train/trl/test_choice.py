"""The choice among a sweep's vectors: by validation, and never by what is held out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tinylora_edge.train.trl.choice import main


def test_the_best_validation_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, score in (("a", 0.5), ("b", 0.75), ("c", 0.75)):
        (tmp_path / f"{name}.bin.json").write_text(json.dumps({"result": {"best_score": score}}))
    vectors = [str(tmp_path / f"{name}.bin") for name in "abc"]
    monkeypatch.setattr(sys, "argv", ["choice", *vectors])
    assert main() == 0
    said = capsys.readouterr()
    assert said.out == vectors[1] + "\n"
    assert f"{vectors[1]}: 0.7500 on validation prompts" in said.err
    for text, message in (("{}", "no record of a run with a validation"), (None, "No such file")):
        record = tmp_path / "a.bin.json"
        record.write_text(text) if text else record.unlink()
        assert main() == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert message in said.err
