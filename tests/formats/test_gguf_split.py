"""Split GGUF models read as one, and each way in which their files can be wrong."""

from __future__ import annotations

import shutil

import models
import numpy as np
import pytest

from tinylora_edge.formats import gguf
from tinylora_edge.formats.gguf import STRING, UINT32, GGUFFile, MalformedGGUFError, gguf_paths, open_gguf

TENSORS = 7


@pytest.fixture(scope="module")
def parts(tiny_gguf, tmp_path_factory):
    """The model, 21 tensors, in three files."""
    return models.split_gguf(tiny_gguf, tmp_path_factory.mktemp("split"), TENSORS, "tiny")


@pytest.fixture
def own(parts, tmp_path):
    """The same, to be changed."""
    return [shutil.copy(path, tmp_path / path.name) for path in parts]


def test_all_tensors_and_the_metadata_are_those_of_the_whole(parts, tiny_gguf):
    assert len(parts) == 3
    one, split = GGUFFile(tiny_gguf), open_gguf(parts[0])
    assert split.architecture == one.architecture
    assert split.get("tokenizer.ggml.tokens") == one.get("tokenizer.ggml.tokens")
    assert set(split.tensors) == set(one.tensors)
    for name, tensor in one.tensors.items():
        assert split.tensors[name].shape == tensor.shape
        assert np.array_equal(split.data(split.tensors[name]), one.data(tensor))


def test_a_whole_model_is_opened_as_it_is(tiny_gguf, tmp_path):
    assert type(open_gguf(tiny_gguf)) is GGUFFile
    assert gguf_paths(tiny_gguf) == [tiny_gguf]
    odd = tmp_path / "m-00002-of-00003.gguf"  # its name alone makes no split model of it
    odd.symlink_to(tiny_gguf)
    assert type(open_gguf(odd)) is GGUFFile
    assert gguf_paths(odd) == [odd]


def check(path, match):
    with pytest.raises(MalformedGGUFError, match=match):
        open_gguf(path)


def test_a_file_that_is_missing(own):
    own[2].unlink()
    with pytest.raises(FileNotFoundError, match=own[2].name):
        open_gguf(own[0])


def test_files_out_of_order(own):
    spare = own[1].with_suffix(".spare")
    own[1].rename(spare)
    own[2].rename(own[1])
    spare.rename(own[2])
    check(own[0], r"tiny-00002-of-00003\.gguf says that it is file 3 of 3: the files are out of order")


def test_a_file_that_is_not_the_first_or_has_another_name(own):
    check(own[1], r"one of the 3 files .*called like tiny-00001-of-00003\.gguf")
    renamed = own[0].rename(own[0].with_name("first.gguf"))
    check(renamed, r"one of the 3 files .*called like first-00001-of-00003\.gguf")


@pytest.mark.parametrize(
    ("key", "value", "kind", "match"),
    [
        ("split.no", "x", STRING, "split.no is 'x', expected int"),
        ("split.tensors.count", [1, 2], UINT32, r"split.tensors.count is array\(.*, expected int"),
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


def test_a_file_of_another_model(own, tiny_gguf, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(models.split_gguf(tiny_gguf, other, 8)[1], own[1])
    check(own[0], r"holds .*, as a file before it does|hold \d+ tensors, but the first says 21")
