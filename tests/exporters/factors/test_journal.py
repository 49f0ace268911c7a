"""What a killed export had done is not done again, and the end is the same."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import ExportError, load_basis
from tinylora_edge.exporters import ExportSettings, bundle_writer, export_gguf
from tinylora_edge.exporters.factors.factorize import module_key
from tinylora_edge.exporters.factors.journal import MAGIC, Factors, Journal, journal_path
from tinylora_edge.exporters.source import Source
from tinylora_edge.exporters.weights.hf import HFWeights

KILLS = 20


@pytest.fixture
def factors():
    def make(seed=0, dtype=np.float32, experts=()):
        rng = np.random.default_rng(seed)
        a, b = rng.standard_normal((*experts, 2, 7)), rng.standard_normal((*experts, 5, 2))
        return Factors(a.astype(dtype), b.astype(dtype), 1e-4 * seed, 7 + seed, seed != 1, None)

    return make


def same(left, right):
    assert np.array_equal(left.a, right.a)
    assert np.array_equal(left.b, right.b)
    assert (left.a.dtype, left.b.dtype) == (right.a.dtype, right.b.dtype)
    assert left.__dict__ | {"a": 0, "b": 0} == right.__dict__ | {"a": 0, "b": 0}


# The file


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("experts", [(), (3,)])
def test_what_is_added_is_read(tmp_path, factors, dtype, experts):
    made = {f"m{i}": factors(i, dtype, experts) for i in range(4)}
    journal = Journal(tmp_path / "j")
    for name, one in made.items():
        journal.add(name, f"key of {name}", one)
    journal.close()
    again = Journal(tmp_path / "j")
    assert len(again) == 4
    assert again.has("m2", "key of m2")
    assert not again.has("m2", "key of m3")
    assert not again.has("m9", "key of m2")
    for name, one in again.read().items():
        same(one, made[name])
    again.remove()
    assert not (tmp_path / "j").exists()


def test_the_last_record_of_a_module_counts(tmp_path, factors):
    with_two = Journal(tmp_path / "j")
    with_two.add("m", "old", factors(2))
    with_two.add("m", "new", factors(3))
    assert with_two.has("m", "new")
    assert not with_two.has("m", "old")
    same(with_two.read()["m"], factors(3))
    with_two.close()
    same(Journal(tmp_path / "j").read()["m"], factors(3))


def test_a_torn_end_is_cut_off_at_every_byte(tmp_path, factors):
    path = tmp_path / "j"
    sizes = []
    journal = Journal(path)
    for i in range(3):
        sizes.append(path.stat().st_size)
        journal.add(f"m{i}", "k", factors(i))
    journal.close()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = sum(length >= size for size in [*sizes[1:], len(whole)])
        again = Journal(path)
        assert len(again) == kept
        again.add("last", "k", factors(9))
        again.close()
        third = Journal(path)
        assert third.has("last", "k")
        assert len(third) == kept + 1
        third.close()


def test_a_damaged_record_ends_the_file(tmp_path, factors):
    path = tmp_path / "j"
    journal = Journal(path)
    for i in range(3):
        journal.add(f"m{i}", "k", factors(i))
    journal.close()
    whole = bytearray(path.read_bytes())
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(MAGIC), len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        again = Journal(path)
        assert len(again) < 3
        for name, one in again.read().items():
            same(one, factors(int(name[1:])))
        again.close()


@pytest.mark.parametrize("content", [b"", MAGIC, None])
def test_a_link_is_not_filled(tmp_path, content):
    """Whoever may write beside an output could have it fill a file of the user's."""
    target = tmp_path / "target"
    if content is not None:
        target.write_bytes(content)
    (tmp_path / "j").symlink_to(target)
    with pytest.raises(ExportError, match="is a link"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").is_symlink()
    assert (target.read_bytes() if target.exists() else None) == content


def test_what_is_no_file_is_left_alone(tmp_path):
    for path in ("/dev/null", tmp_path):
        with pytest.raises(ExportError, match=r"regular file|cannot write"):
            Journal(Path(path))
    assert Path("/dev/null").exists()


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b"my diary")
    with pytest.raises(ExportError, match="not a file of factors"):
        Journal(path)
    assert path.read_bytes() == b"my diary"


def test_two_exports_do_not_share_a_journal(tmp_path):
    first = Journal(tmp_path / "j")
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "j")
    first.close()
    Journal(tmp_path / "j").close()


def test_an_export_that_is_running_is_not_joined(llama_gguf, tmp_path):
    running = Journal(journal_path(tmp_path / "bundle"))
    with pytest.raises(ExportError, match=r"another export to .*bundle is running"):
        export_gguf(llama_gguf, tmp_path / "bundle")
    running.close()
    export_gguf(llama_gguf, tmp_path / "bundle")


def test_threads_add_whole_records(tmp_path, factors):
    journal = Journal(tmp_path / "j")

    def add(worker):
        for i in range(20):
            journal.add(f"{worker} {i}", "k", factors(i))

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    again = Journal(tmp_path / "j").read()
    assert len(again) == 80
    for name, one in again.items():
        same(one, factors(int(name.split()[1])))


# Exports


class StopError(Exception):
    pass


def interrupted(model, output, after, **options):
    count = 0

    def progress(module, size):
        nonlocal count
        count += 1
        if count == after:
            raise StopError

    with pytest.raises(StopError):
        export_gguf(model, output, progress=progress, workers=1, **options)


@pytest.fixture
def factorized(monkeypatch):
    """Names of the modules that are factorized from now on."""
    real, names = Source.factorize, []

    def spy(self, module, stop):
        made = real(self, module, stop)
        names.append(module)
        return made

    monkeypatch.setattr(Source, "factorize", spy)
    return names


class Rows:
    def __init__(self, weight):
        self.weight, self.shape = weight, weight.shape

    def rows(self, start, stop):
        return self.weight[start:stop]


def test_keys_stay_what_they_were():
    """Those of release 0.1: an export that was begun with it goes on."""
    weight = [Rows(np.arange(600, dtype=np.float32).reshape(40, 15)), Rows(np.ones((40, 15), np.float32))]
    other = ExportSettings(rank=3, factorization="sqrt", factor_dtype="f16", seed=1)
    keys = [
        module_key("blk.0.attn_q.weight", weight, settings, stacked=stacked, context=context)
        for settings, stacked, context in ((ExportSettings(), False, ""), (other, True, "llama 4"))
    ]
    assert keys == [
        "cc781aa98ed8378d2a9b3930ac750f21e34aec669365d8d89ef296b921831d52",
        "da58a4ce5e1c0981ffeab735cf08e96a5771e4ad6f3b6357e8c539c8ca9f53a7",
    ]


@pytest.mark.parametrize(
    ("architecture", "contexts"),
    [
        ("llama", {"attn_q": "llama 4", "attn_k": "llama 2", "attn_v": "llama None", "ffn_up": "llama None"}),
        ("falcon", {"attn_qkv": "falcon (4, 2)", "ffn_up": "falcon None"}),  # whose order was wrong before
    ],
)
def test_keys_of_a_directory_alone(architecture, contexts, tmp_path):
    import models

    hf = models.write_hf(models.tiny_model(architecture), tmp_path / "hf")
    source = Source(hf, None, ExportSettings(), needs_gguf=False)
    weights = HFWeights(hf, architecture, 2)
    for kind, context in contexts.items():
        module = f"blk.1.{kind}.weight"
        matrices = weights.matrices(module)
        expected = module_key(module, matrices, ExportSettings(), stacked=False, context=context)
        assert source.key(module) == expected


def test_finished_modules_are_not_factorized_again(llama_gguf, tmp_path, factorized):
    whole = export_gguf(llama_gguf, tmp_path / "whole")
    factorized.clear()
    interrupted(llama_gguf, tmp_path / "bundle", after=9)
    first = set(factorized)
    factorized.clear()
    report = export_gguf(llama_gguf, tmp_path / "bundle")
    assert first | set(factorized) == set(report.basis.modules)
    assert not first & set(factorized)
    assert len(first) >= 9
    assert report.basis.digest == whole.basis.digest
    assert report.quality == whole.quality
    assert not journal_path(tmp_path / "bundle").exists()


def test_what_is_raised_after_the_bundle_is_there_leaves_no_journal(llama_gguf, tmp_path, monkeypatch):
    def interrupt(path):
        if path == tmp_path:  # the rename is to be made durable
            raise KeyboardInterrupt

    monkeypatch.setattr(bundle_writer, "sync_directory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_gguf(llama_gguf, tmp_path / "bundle")
    assert load_basis(tmp_path / "bundle" / "basis.gguf").modules
    assert not journal_path(tmp_path / "bundle").exists()


def test_seed_tying_and_targets_may_change(llama_gguf, tmp_path, factorized):
    """They do not decide the factors of a module: hours of work are kept."""
    interrupted(llama_gguf, tmp_path / "bundle", after=14)
    factorized.clear()
    settings = ExportSettings(seed=7, groups=2, u=3, targets=("attn_*",))
    report = export_gguf(llama_gguf, tmp_path / "bundle", settings=settings)
    assert factorized == []
    assert report.basis.digest == export_gguf(llama_gguf, tmp_path / "b", settings=settings).basis.digest


@pytest.mark.parametrize("change", [{"rank": 3}, {"factorization": "sqrt"}, {"factor_dtype": "f16"}])
def test_what_decides_the_factors_may_not(llama_gguf, tmp_path, factorized, change):
    interrupted(llama_gguf, tmp_path / "bundle", after=14)
    factorized.clear()
    settings = ExportSettings(**change)
    report = export_gguf(llama_gguf, tmp_path / "bundle", settings=settings)
    assert len(factorized) == 14
    assert report.basis.digest == export_gguf(llama_gguf, tmp_path / "b", settings=settings).basis.digest


def test_another_model_is_factorized_anew(tiny_models, llama_gguf, tmp_path, factorized):
    import models

    interrupted(llama_gguf, tmp_path / "bundle", after=14)
    other = models.write_gguf(models.tiny_model("llama", seed=5), tmp_path / "other.gguf")
    factorized.clear()
    report = export_gguf(other, tmp_path / "bundle")
    assert len(factorized) == 14
    assert report.basis.digest == export_gguf(other, tmp_path / "b").basis.digest


def test_workers_make_no_difference(smollm2_gguf, smollm2_bundle, tmp_path):
    digest = load_basis(smollm2_bundle / "basis.gguf").digest
    for workers in (1, 3):
        report = export_gguf(smollm2_gguf, tmp_path / f"{workers}", workers=workers)
        assert report.basis.digest == digest


def test_no_workers_are_refused(llama_gguf, tmp_path):
    with pytest.raises(ExportError, match="0 workers"):
        export_gguf(llama_gguf, tmp_path / "bundle", workers=0)


def test_killed_at_random_moments_it_ends_in_the_same_digest(smollm2_gguf, smollm2_bundle, tmp_path):
    """SIGKILL twenty times, each time a little further on; then it is let run."""
    digest = load_basis(smollm2_bundle / "basis.gguf").digest
    output = tmp_path / "bundle"
    code = (
        "import sys\n"
        "from tinylora_edge.exporters import export_gguf\n"
        "print(flush=True)\n"
        "export_gguf(sys.argv[1], sys.argv[2], progress=lambda m, s: print(flush=True))\n"
    )
    rng = random.Random(0)
    kept = []
    for _ in range(KILLS):
        command = [sys.executable, "-Pc", code, smollm2_gguf, output]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        for _ in range(rng.randint(1, 210)):
            if not child.stdout.readline():
                break
        time.sleep(rng.random() * 0.01)
        child.kill()
        child.communicate()
        if output.exists():
            assert load_basis(output / "basis.gguf").digest == digest
            shutil.rmtree(output)
            continue
        path = journal_path(output)
        kept.append(path.stat().st_size if path.exists() else 0)
        if rng.random() < 0.4:  # begin again, or the later half would only ever read the journal
            path.unlink(missing_ok=True)
    assert sum(size > 0 for size in kept) > KILLS / 4
    report = export_gguf(smollm2_gguf, output)
    assert report.basis.digest == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
