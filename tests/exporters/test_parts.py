"""An export in parts has the digest of one in one piece; what does not belong together is refused."""

from __future__ import annotations

import json
import shutil

import models
import pytest

from tinylora_edge import BaseMismatchError, Bundle, ExportError, load_basis
from tinylora_edge.exporters import ExportSettings, export_gguf, export_part, merge
from tinylora_edge.exporters.factors.journal import Journal, read_part
from tinylora_edge.exporters.parts import share

SETTINGS = ExportSettings(groups=3, seed=9)


@pytest.fixture
def parts(llama_gguf, tmp_path):
    """Three parts of the small model, made one after another."""
    made = [export_part(llama_gguf, tmp_path / "b", (i, 3), settings=SETTINGS) for i in (1, 2, 3)]
    return [report.output for report in made]


def refuse(parts, tmp_path, match, error=ExportError, **options):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=match) as caught:
        merge(parts, tmp_path / "refused", **options)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("count", [1, 2, 3, 14])
def test_merged_parts_are_an_export_in_one_piece(llama_gguf, tmp_path, count):
    whole = export_gguf(llama_gguf, tmp_path / "whole", settings=SETTINGS)
    reports = [
        export_part(llama_gguf, tmp_path / "b", (i, count), settings=SETTINGS)
        for i in reversed(range(1, count + 1))
    ]
    assert [m for r in reversed(reports) for m in r.modules] == list(whole.basis.modules)
    merged = merge([report.output for report in reports], tmp_path / "b")
    assert merged.basis.digest == whole.basis.digest
    assert merged.quality == whole.quality
    assert (merged.output / "basis.gguf").read_bytes() == (whole.output / "basis.gguf").read_bytes()
    assert Bundle.find(merged.output).manifest == Bundle.find(whole.output).manifest
    assert Bundle.find(merged.output).check_base()


def test_the_real_model_in_three_parts(smollm2_gguf, smollm2_bundle, tmp_path):
    files = [export_part(smollm2_gguf, tmp_path / "b", (i, 3)).output for i in (3, 1, 2)]
    assert merge(files, tmp_path / "b").basis.digest == load_basis(smollm2_bundle / "basis.gguf").digest


def test_from_a_directory_of_weights(tiny_models, llama_gguf, tmp_path):
    hf = models.write_hf(tiny_models["llama"], tmp_path / "hf")
    whole = export_gguf(hf, tmp_path / "whole", base=llama_gguf, settings=SETTINGS)
    files = [
        export_part(hf, tmp_path / "b", (i, 2), base=llama_gguf, settings=SETTINGS).output for i in (1, 2)
    ]
    merged = merge(files, tmp_path / "b")
    assert merged.basis.digest == whole.basis.digest
    assert merged.quality.agreement == whole.quality.agreement


def test_a_part_that_was_killed_goes_on(llama_gguf, tmp_path):
    class Killed(BaseException):
        pass

    def kill(module, size):
        raise Killed

    with pytest.raises(Killed):
        export_part(llama_gguf, tmp_path / "b", (1, 2), settings=SETTINGS, progress=kill, workers=1)
    assert [path.name for path in tmp_path.glob(".b*")] == [".b.part-1-of-2.factors"]
    files = [export_part(llama_gguf, tmp_path / "b", (i, 2), settings=SETTINGS).output for i in (1, 2)]
    assert not list(tmp_path.glob(".b*"))
    whole = export_gguf(llama_gguf, tmp_path / "whole", settings=SETTINGS)
    assert merge(files, tmp_path / "b").basis.digest == whole.basis.digest


def test_a_part_begun_with_other_settings_has_the_plan_of_the_new_ones(llama_gguf, tmp_path):
    def kill(module, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_part(llama_gguf, tmp_path / "b", (1, 2), settings=ExportSettings(groups=2), progress=kill)
    files = [export_part(llama_gguf, tmp_path / "b", (i, 2), settings=SETTINGS).output for i in (1, 2)]
    whole = export_gguf(llama_gguf, tmp_path / "whole", settings=SETTINGS)
    assert merge(files, tmp_path / "b").basis.digest == whole.basis.digest


def test_the_base_may_lie_elsewhere(llama_gguf, tmp_path):
    base = shutil.copy(llama_gguf, tmp_path / "model.gguf")
    files = [export_part(base, tmp_path / "b", (i, 2), settings=SETTINGS).output for i in (1, 2)]
    moved = base.rename(tmp_path / "moved.gguf")
    refuse(files, tmp_path, r"model\.gguf does not exist.*--base FILE")
    assert merge(files, tmp_path / "b", base=moved).basis.base_fingerprints


# Shares


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shares_are_consecutive_whole_and_about_equal(count):
    sizes = [7, 1, 1, 7, 37, 37, 37] * 4
    modules = [str(i) for i in range(len(sizes))]
    parts = [share(modules, sizes, i, count) for i in range(1, count + 1)]
    assert [m for part in parts for m in part] == modules
    loads = [sum(sizes[int(m)] for m in part) for part in parts]
    assert max(loads) - min(loads) <= 2 * max(sizes)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [100, 1, 1, 1], [1, 1, 1, 100]])
def test_no_share_is_empty(sizes):
    for count in range(1, 5):
        parts = [share("abcd", sizes, i, count) for i in range(1, count + 1)]
        assert all(parts)
        assert [module for part in parts for module in part] == list("abcd")


# What is refused


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (-1, 3), (1, 0), (1, 15)])
def test_a_part_that_does_not_exist(llama_gguf, tmp_path, part):
    with pytest.raises(ExportError, match=rf"no part {part[0]} of {part[1]}.* 14"):
        export_part(llama_gguf, tmp_path / "b", part, settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_there(parts, llama_gguf, tmp_path):
    with pytest.raises(ExportError, match=r"b\.part-1-of-3 exists already"):
        export_part(llama_gguf, tmp_path / "b", (1, 3), settings=SETTINGS)


def test_a_missing_part(parts, tmp_path):
    refuse(parts[::2], tmp_path, "part 2 of 3 is missing")
    refuse(parts[:1], tmp_path, "part 2, 3 of 3 is missing")
    refuse([], tmp_path, "no parts")


def test_a_part_twice(parts, tmp_path):
    twice = shutil.copy(parts[0], tmp_path / "again")
    refuse([*parts, twice], tmp_path, "both part 1 of 3")


def test_a_part_of_another_export(parts, llama_gguf, tmp_path):
    other = export_part(llama_gguf, tmp_path / "x", (2, 3), settings=ExportSettings(groups=3, seed=10)).output
    refuse([parts[0], other, parts[2]], tmp_path, r"part of another export.*its seed is 10, not 9")
    fewer = export_part(llama_gguf, tmp_path / "y", (2, 2), settings=SETTINGS).output
    refuse([parts[0], fewer], tmp_path, "one of 2 parts, not of 3")


@pytest.mark.parametrize(
    ("ours", "theirs", "key"),
    [
        ({"hub": "h", "name": "a"}, {"hub": "h"}, "name"),
        ({"hub": "h"}, {"hub": "h", "name": "a"}, "name"),
        ({"hub": "h", "licence": None}, {"hub": "h"}, "licence"),
        ({"hub": "h"}, None, "source"),
    ],
)
def test_a_part_from_elsewhere(llama_gguf, tmp_path, ours, theirs, key):
    files = [
        export_part(llama_gguf, tmp_path / "b", (number, 2), settings=SETTINGS, provenance=source).output
        for number, source in ((1, ours), (2, theirs))
    ]
    refuse(files, tmp_path, rf"part-2-of-2 is part of another export.*its {key} is")


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(format=2),
        lambda plan: plan.pop("format"),
        lambda plan: plan.pop("settings"),
        lambda plan: plan.pop("tying"),
        lambda plan: plan.update(part=2),
        lambda plan: plan["settings"].update(alpha=1),
        lambda plan: plan["settings"].pop("targets"),
    ],
)
def test_a_part_of_another_release(parts, tmp_path, change):
    for path in parts:
        plan, _ = read_part(path)
        change(plan)
        Journal(path, plan).close()
    refuse(parts, tmp_path, r"part-1-of-3 has a plan of format .* by tinylora-edge .* does not read")


def test_a_part_of_another_model(parts, tmp_path):
    model = models.write_gguf(models.tiny_model("llama", seed=8), tmp_path / "other.gguf")
    other = export_part(model, tmp_path / "x", (2, 3), settings=SETTINGS).output
    refuse([parts[0], other, parts[2]], tmp_path, "its fingerprints is")


def test_another_base(parts, tmp_path):
    model = models.write_gguf(models.tiny_model("llama", seed=8), tmp_path / "other.gguf")
    refuse(parts, tmp_path, "parts were made for", BaseMismatchError, base=model)
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"junk")
    refuse(parts, tmp_path, "not a usable GGUF", base=junk)


def test_damaged_parts(parts, tmp_path):
    whole = parts[1].read_bytes()
    half = len(whole) // 2
    for damaged in (whole[:-1], whole[:-5000], whole[:half] + bytes(4) + whole[half + 4 :]):
        parts[1].write_bytes(damaged)
        refuse(parts, tmp_path, r"part-2-of-3 is damaged.*Make this part again")
    parts[1].write_bytes(b"")
    refuse(parts, tmp_path, "part-2-of-3 is damaged")
    parts[1].write_bytes(b"something else")
    refuse(parts, tmp_path, "not a file of factors")
    parts[1].unlink()
    refuse(parts, tmp_path, "part-2-of-3 cannot be read: No such file")


def test_a_journal_is_no_part(parts, tmp_path):
    Journal(tmp_path / "j").close()
    refuse([*parts, tmp_path / "j"], tmp_path, "no part of an export: it has no plan")


def test_an_output_that_exists(parts, tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        merge(parts, tmp_path / "b")


def test_the_command_line(tiny_models, llama_gguf, tmp_path):
    from typer.testing import CliRunner

    from tinylora_edge.cli.app import app

    def run(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    out = tmp_path / "b"
    for i in (1, 2):
        words = ("export", llama_gguf, "-o", out, "--part", f"{i}/2", "--groups", 3, "--workers", 1)
        told = run(*words).stdout
        assert f"exported part {i} of 2" in told
        assert f"tinylora-edge merge {out}.part-1-of-2 {out}.part-2-of-2 -o {out}" in told
    files = [f"{out}.part-{i}-of-2" for i in (1, 2)]
    record = json.loads(run("merge", *files, "-o", out, "--json").stdout)
    whole = json.loads(run("export", llama_gguf, "-o", tmp_path / "w", "--groups", 3, "--json").stdout)
    same = set(record) - {"bundle", "seconds"}
    assert {key: record[key] for key in same} == {key: whole[key] for key in same}
    assert "expected I/N" in run("export", llama_gguf, "-o", out, "--part", "three", code=2).output
    assert "no part 4 of 3" in run("export", llama_gguf, "-o", tmp_path / "c", "--part", "4/3", code=1).output
    assert "gguf" in run("export", llama_gguf, "-o", out, "--part", "1/3", "--format", "onnx", code=2).output
