"""Split GGUF models read as one, and each way in which their files can be wrong."""

from __future__ import annotations

import shutil

import models
import numpy as np
import pytest

from tinylora_edge.formats import gguf
from tinylora_edge.formats.gguf import (
    STRING,
    UINT32,
    GGUFFile,
    MalformedGGUFError,
    gguf_paths,
    open_gguf,
)
from tinylora_edge.formats.side_tensors import fingerprint

TENSORS = 70


@pytest.fixture(scope="module")
def parts(smollm2_gguf, tmp_path_factory):
    """The real model, 272 tensors, in four files."""
    return models.split_gguf(smollm2_gguf, tmp_path_factory.mktemp("split"), TENSORS, "smollm2")


@pytest.fixture
def own(parts, tmp_path):
    """The same, to be changed."""
    return [shutil.copy(path, tmp_path / path.name) for path in parts]


@pytest.mark.slow
def test_all_tensors_and_the_metadata_are_those_of_the_whole(parts, smollm2_gguf):
    assert len(parts) == 4
    whole, split = GGUFFile(smollm2_gguf), open_gguf(parts[0])
    assert split.architecture == whole.architecture
    assert split.get("tokenizer.ggml.tokens") == whole.get("tokenizer.ggml.tokens")
    assert set(split.tensors) == set(whole.tensors)
    for name, tensor in whole.tensors.items():
        assert split.tensors[name].shape == tensor.shape
        assert np.array_equal(split.data(split.tensors[name]), whole.data(tensor))


def test_the_fingerprint_is_that_of_the_whole(parts, smollm2_gguf):
    modules = [f"blk.{block}.{kind}.weight" for block in (0, 15, 29) for kind in ("attn_q", "ffn_down")]
    assert fingerprint(open_gguf(parts[0]), modules) == fingerprint(GGUFFile(smollm2_gguf), modules)


def test_a_whole_model_is_opened_as_it_is(smollm2_gguf, tmp_path):
    assert type(open_gguf(smollm2_gguf)) is GGUFFile
    assert gguf_paths(smollm2_gguf) == [smollm2_gguf]
    odd = tmp_path / "m-00002-of-00003.gguf"  # its name alone makes no split model of it
    odd.symlink_to(smollm2_gguf)
    assert type(open_gguf(odd)) is GGUFFile
    assert gguf_paths(odd) == [odd]


def check(path, match):
    with pytest.raises(MalformedGGUFError, match=match):
        open_gguf(path)


def test_a_file_that_is_not_the_first(parts):
    check(parts[1], r"one of the 4 files .*called like smollm2-00001-of-00004\.gguf")


def test_a_file_that_is_missing(own):
    own[2].unlink()
    check(own[0], r"1 are not beside it, such as smollm2-00003-of-00004\.gguf: download")
    own[1].unlink()
    check(own[0], r"2 are not beside it, such as smollm2-00002-of-00004\.gguf")


def test_files_out_of_order(own):
    spare = own[1].with_suffix(".spare")
    own[1].rename(spare)
    own[2].rename(own[1])
    spare.rename(own[2])
    check(own[0], r"smollm2-00002-of-00004\.gguf says that it is file 3 of 4: the files are out of order")


def test_a_file_without_its_name(own):
    renamed = own[0].rename(own[0].with_name("first.gguf"))
    check(renamed, r"one of the 4 files .*called like model-00001-of-00004\.gguf")


@pytest.mark.parametrize(
    ("key", "value", "kind", "match"),
    [
        ("split.no", "x", STRING, "split.no is 'x', expected a int"),
        ("split.no", [0, 1], UINT32, r"split.no is array\(.*, expected a int"),
        ("split.tensors.count", [1, 2], UINT32, r"split.tensors.count is array\(.*, expected a int"),
    ],
)
def test_keys_of_another_kind(tmp_path, key, value, kind, match):
    for number in (0, 1):
        stated = {"split.no": (number, UINT32), "split.count": (2, UINT32)}
        stated |= {} if number else {key: (value, kind)}
        with open(tmp_path / f"m-0000{number + 1}-of-00002.gguf", "wb") as file:
            pairs = [(name, *pair) for name, pair in stated.items()]
            gguf.write(file, "llama", pairs, {f"blk.{number}.attn_q.weight": np.zeros((8, 8), np.float32)})
    check(tmp_path / "m-00001-of-00002.gguf", match)


@pytest.mark.slow
def test_a_file_of_another_model(own, parts, smollm2_gguf, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(models.split_gguf(smollm2_gguf, other, 69)[1], own[1])
    check(own[0], r"holds .*, as a file before it does|hold \d+ tensors, but the first says 272")
