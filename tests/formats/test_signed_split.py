"""Signed bundles whose base is in several files, or is named as if it were: what is opened was hashed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tinylora_edge import Bundle, Ed25519Signer, Ed25519Verifier, TrustError
from tinylora_edge.formats.gguf import gguf_paths, named_paths, split_name
from tinylora_edge.formats.signatures import check_bundle, files_of, sign_bundle

SIGNER = Ed25519Signer(b"k" * 32)
KEYS = [Ed25519Verifier(SIGNER.public_key)]
NAMES = [
    *("base.gguf", "base-00001-of-00000.gguf", "base-00001-of-00001.gguf", "base-00001-of-00002.gguf"),
    *("base-00001-of-00099.gguf", "base-00001-of-x.gguf", "base-00001-of-.gguf", "base-00001-of-1.gguf"),
    "base-00001-of-0000\N{ARABIC-INDIC DIGIT TWO}.gguf",
    "base-00001-of-\N{FULLWIDTH DIGIT ZERO}0002.gguf",
    "base-00001-of-00002-00001-of-00002.gguf",
]


def written(folder: Path, *names: str) -> Path:
    """A bundle of so many files of a base; what they hold does not matter here."""
    folder.mkdir()
    for name in ("basis.gguf", *names):
        (folder / name).write_bytes(name.encode())
    return folder


def check(folder: Path) -> None:
    bundle = Bundle.find(folder)
    checked = check_bundle(bundle, KEYS, engine="llama")
    assert bundle.base in checked.files


@pytest.mark.parametrize("name", NAMES)
def test_a_base_that_was_exchanged_under_any_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "bundle", "base.gguf")
    sign_bundle(folder, SIGNER)
    check(folder)
    (folder / "base.gguf").rename(folder / name)
    (folder / name).write_bytes(b"another")
    assert Bundle.find(folder).base == folder / name
    assert folder / name in files_of(Bundle.find(folder), "llama")
    with pytest.raises(TrustError, match=r"is what was signed|is not in the signature"):
        check(folder)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "base-00001-of-00002.gguf"])
def test_a_file_beside_a_split_base_is_not_loaded(tmp_path: Path, name: str) -> None:
    """Also one whose name comes before that of the base's first file."""
    honest = [split_name("base", number, 2) for number in (1, 2)]
    folder = written(tmp_path / "bundle", *honest)
    sign_bundle(folder, SIGNER)
    check(folder)
    (folder / name).write_bytes(b"another")
    if Bundle.find(folder).base == folder / honest[0]:
        check(folder)
    else:
        with pytest.raises(TrustError, match="is not in the signature"):
            check(folder)


def test_a_file_is_always_one_of_those_that_its_name_names() -> None:
    draw = random.Random(0)
    for _ in range(200):
        number, count = draw.choice((0, 1, 2, 3, 12345)), draw.choice((0, 1, 2, 3, 40))
        name = split_name(
            draw.choice(("base", "a.b", "-00001-of-00002", "\N{SUPERSCRIPT TWO}")), number, count
        )
        if draw.random() < 0.5:
            at = draw.randrange(len(name))
            name = name[:at] + draw.choice("0129-.x\N{ARABIC-INDIC DIGIT ONE}") + name[at + 1 :]
        path = Path("models", name)
        assert path in named_paths(path)
        assert gguf_paths(path) == [path], "the others do not exist"


def test_a_part_that_is_missing_may_not_come_later(tmp_path: Path) -> None:
    """Else the first file alone would be hashed, and the engine would open whatever lies there then."""
    honest = [split_name("base", number, 3) for number in (1, 2, 3)]
    folder = written(tmp_path / "bundle", *honest)
    sign_bundle(folder, SIGNER)
    (folder / honest[1]).unlink()
    with pytest.raises(TrustError, match=r"base-00002-of-00003\.gguf is not there, but was signed as one of"):
        check(folder)


def test_a_whole_base_with_a_number_in_its_name(tmp_path: Path) -> None:
    """As a model that was merged in place, and kept its name."""
    folder = written(tmp_path / "folder", "m-00001-of-00003.gguf")
    (folder / "basis.gguf").rename(folder / "m.basis.gguf")
    sign_bundle(folder / "m-00001-of-00003.gguf", SIGNER)
    check(folder / "m-00001-of-00003.gguf")
