"""Named axes on the command line: `vector new --axis`, and what both `inspect` commands show of them."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
import support
from invocation import Cli, contents

from tinylora_edge import Basis, MicroVector, save_basis

NAMES = ("length", "formality", "tone = warm")


@pytest.fixture
def learned(tmp_path: Path) -> tuple[Path, Basis]:
    """A learned basis of 3 values with names and a prior, in a file."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal((3, 6, 2, 2))
    basis = support.random_basis().with_projections(p, axes=NAMES, prior=([0, 0, 0], np.eye(3)))
    (tmp_path / "in").mkdir()
    save_basis(basis, tmp_path / "in" / "learned.basis.gguf")
    return tmp_path / "in" / "learned.basis.gguf", basis


@pytest.fixture
def nameless(learned: tuple[Path, Basis]) -> Path:
    """The same without names."""
    path = learned[0].with_name("nameless.basis.gguf")
    save_basis(dataclasses.replace(learned[1], axes=()), path)
    return path


def test_values_of_named_axes(cli: Cli, learned: tuple[Path, Basis], tmp_path: Path) -> None:
    path, basis = learned
    out = tmp_path / "v.bin"
    cli("vector", "new", path, "-o", out, "--axis", "tone = warm=0.5", "--axis", "length=-1e0").done()
    assert MicroVector.from_bytes(out.read_bytes(), basis).values.tolist() == [[-1, 0, 0.5]]
    cli("vector", "new", path, "-o", out, "--axis", "formality=2", "--dtype", "bf16", "--force").done()
    assert MicroVector.from_bytes(out.read_bytes(), basis).values.tolist() == [[0, 2, 0]]
    report = cli("vector", "new", path, "-o", out, "--axis", "length=1", "--force", "--json").record()
    assert report["values"] == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--axis", "lenght=1"], ["no axis 'lenght'", "did you mean 'length'?"]),
        (["--axis", "length=1", "--axis", "zzz=1"], ["no axis 'zzz'", "length, formality, tone = warm"]),
        (["--axis", "length=nan"], ["value 0", "nan"]),
        (["--axis", "formality=1e39"], ["value 1", "inf"]),
        (["--axis", "tone = warm=7e4", "--dtype", "fp16"], ["value 2", "70000", "fp16"]),
    ],
)
def test_axes_that_are_none(
    cli: Cli, learned: tuple[Path, Basis], tmp_path: Path, options: list[str], parts: list[str]
) -> None:
    cli("vector", "new", learned[0], "-o", tmp_path / "v.bin", *options).refused(*parts)
    assert list(contents(tmp_path / "in")) == ["learned.basis.gguf"]
    assert not (tmp_path / "v.bin").exists()


def test_a_basis_without_names(cli: Cli, nameless: Path, smollm2_bundle: Path, tmp_path: Path) -> None:
    for bundle in (nameless, smollm2_bundle):
        cli("vector", "new", bundle, "-o", tmp_path / "v.bin", "--axis", "length=1").refused(
            "no axis 'length'", "the axes of this basis have no names"
        )
    assert not (tmp_path / "v.bin").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--axis", "length=1", "--zeros"], "one of --values, --random, --zeros and --axis"),
        (["--axis", "length=1", "--random", "1"], "one of --values, --random, --zeros and --axis"),
        (["--axis", "length=1", "--values", "1,2,3"], "one of --values, --random, --zeros and --axis"),
        (["--axis", "length=1", "--seed", "1"], "--seed"),
        (["--axis", "length"], "'length' is not NAME=X"),
        (["--axis", "length="], "'length=' is not NAME=X"),
        (["--axis", "=1"], "'=1' is not NAME=X"),
        (["--axis", "length=long"], "'length=long' is not NAME=X"),
        (["--axis", "length=1", "--axis", "length=2"], "'length' is given twice"),
    ],
)
def test_wrong_usage(
    cli: Cli, learned: tuple[Path, Basis], tmp_path: Path, options: list[str], part: str
) -> None:
    cli("vector", "new", learned[0], "-o", tmp_path / "v.bin", *options).misused(part)
    assert not (tmp_path / "v.bin").exists()


def test_vector_inspect_shows_values_beside_names(
    cli: Cli, learned: tuple[Path, Basis], nameless: Path, tmp_path: Path
) -> None:
    path, _ = learned
    out = tmp_path / "v.bin"
    cli("vector", "new", path, "-o", out, "--axis", "length=-1", "--axis", "tone = warm=0.25").done()
    lines = cli("vector", "inspect", out, path).done().splitlines()
    assert [shlex.split(line) for line in lines[-3:]] == [
        ["length", "-1"],
        ["formality", "0"],
        ["tone", "=", "warm", "0.25"],
    ]
    record = cli("vector", "inspect", out, path, "--json").record()
    assert (record["axes"], record["values"]) == (list(NAMES), [[-1, 0, 0.25]])
    assert "group 0" in cli("vector", "inspect", out, nameless).done(), "they share the digest"
    assert "axes" not in cli("vector", "inspect", out, nameless, "--json").record()


def test_inspect_shows_projections_names_and_prior(
    cli: Cli, learned: tuple[Path, Basis], nameless: Path, smollm2_bundle: Path
) -> None:
    def rows(path: Path) -> dict[str, str]:
        lines = cli("inspect", path).done().splitlines()
        return {line.split("  ")[0]: line.partition("  ")[2].strip() for line in lines}

    shown = rows(learned[0])
    assert shown["projection"] == "explicit, stored in the basis"
    assert shown["axes"] == "length, formality, tone = warm"
    assert shown["prior"] == "mean and covariance"
    assert rows(nameless)["axes"] == "without names"
    shown = rows(smollm2_bundle)
    assert shown["projection"] == "irwin-hall-12/splitmix64, seed 42"
    assert (shown["axes"], shown["prior"]) == ("without names", "none")
    record = cli("inspect", learned[0], "--json").record()
    assert (record["projection"], record["axes"], record["prior"]) == ("explicit", list(NAMES), True)
