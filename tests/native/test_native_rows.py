"""R in llama.cpp's callback, in C: rows of different vectors together are what each of them is alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import models
import native_reader
import noise
import numpy as np
import pytest
import support
from numpy.typing import NDArray

from tinylora_edge import Bases, load_bundle
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.wire import text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native/rows.c, with sanitizers where they run."""
    site = native_reader.llama()
    flags = ("-DTINYLORA_LLAMA", "-isystem", f"{site}/include", f"-L{site}/lib", f"-Wl,-rpath,{site}/lib")
    return native_reader.build(
        tmp_path_factory.mktemp("rows"),
        *flags,
        source="rows.c",
        libraries=("-lllama", "-lggml", "-lggml-base", "-lm"),
        watched=True,
    )


@pytest.fixture(scope="module", params=["llama", "qwen3moe"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 40 outputs, where layers of 32 have fewer."""
    folder = tmp_path_factory.mktemp(request.param)
    base = models.write_gguf(models.tiny_model(request.param), folder / "base.gguf")
    return export_gguf(base, folder / "bundle", settings=ExportSettings(outputs=40)).output


def frames(bases: Bases) -> list[str]:
    """The base, and a vector of each size, the largest last."""
    sizes = [*support.each_size(bases), bases.basis(rank=bases.factors.shape)]
    return ["-", *(text.encode(support.of_norm(basis, 3.0, dtype="fp32").to_bytes(basis)) for basis in sizes)]


def run(program: Path, form: str, bundle: Path, room: tuple[int, int], given: list[str]) -> str:
    """Return the logits of a row a line, in hexadecimal, or one line on what was refused."""
    paths = (bundle / "base.gguf", bundle / "basis.gguf")
    command = [str(program), form, *map(str, (*paths, *room)), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    return done.stdout or done.stderr


def logits(
    program: Path, form: str, bundle: Path, room: tuple[int, int], given: list[str]
) -> NDArray[np.float32]:
    lines = run(program, form, bundle, room, given).split()
    return np.stack([np.frombuffer(bytes.fromhex(line), "<f4") for line in lines])


def test_rows_are_what_each_is_with_its_vector_folded_in(program: Path, bundle: Path) -> None:
    """Prompts of two lengths, then a token of each; an adapter for all vectors, and one for small ones."""
    given = frames(load_bundle(bundle).bases)
    expected = logits(program, "folded", bundle, (0, 0), given)
    base = ["-"] * len(given)
    bound = noise.bound(*(logits(program, form, bundle, (0, 0), base) for form in ("folded", "together")))
    apart = np.abs(expected[:, None, 1:] - expected[None, :, 1:]).max(-1)[np.triu_indices(len(given), 1)]
    assert apart.min() > 100 * bound, "the vectors differ"
    for form, room, rows in (
        ("together", (0, 0), given),
        ("device", (0, 0), given),
        ("together", (8, 8), given[:-1]),
    ):
        found = logits(program, form, bundle, room, rows)
        assert np.abs(found - expected[: len(rows)]).max() < bound, (form, room)


def test_the_base_is_the_base_to_the_bit(program: Path, bundle: Path) -> None:
    plain = run(program, "folded", bundle, (0, 0), ["-"])
    assert run(program, "together", bundle, (0, 0), ["-"]) == plain


def test_what_it_refuses(program: Path, bundle: Path) -> None:
    given = frames(load_bundle(bundle).bases)
    assert "of 7 tokens at once: set kv_unified" in run(program, "split", bundle, (0, 0), given[:2])
    shape = "entries out=40 in=8 does not fit into an adapter of rank 8: make a larger one"
    assert shape in run(program, "together", bundle, (8, 8), given[-1:])
    assert "R is 41 x 8, and the factors take 40 x 8" in run(program, "together", bundle, (41, 8), given)
