"""`vector average`: files in, one frame out, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import support
from invocation import Cli, contents

from tinylora_edge import Basis, Hmac, MicroVector, privacy
from tinylora_edge.formats.side_tensors import save_basis

KEY = bytes(range(32))


@pytest.fixture
def users(basis: Basis, tmp_path: Path) -> list[Path]:
    """Three users' frames, of norm 0.1, 0.2 and 0.4 and sequence 5, 6 and 7."""
    folder = tmp_path / "users"
    folder.mkdir()
    paths = []
    for number, norm in enumerate((0.1, 0.2, 0.4)):
        drawn = MicroVector.random(basis, norm, seed=number)
        path = folder / f"{number}.bin"
        path.write_bytes(MicroVector(drawn.values, "fp32", 5 + number).to_bytes(basis))
        paths.append(path)
    return paths


def read(path: Path, basis: Basis) -> MicroVector:
    return MicroVector.from_bytes(path.read_bytes(), basis)


def test_the_mean_is_a_frame_of_the_same_basis(
    cli: Cli, smollm2_bundle: Path, basis: Basis, users: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "mean.bin"
    text = cli("vector", "average", *users, "--bundle", smollm2_bundle, "-o", out).done()
    mean = read(out, basis)
    given = [read(path, basis).values.astype(np.float64) for path in users]
    np.testing.assert_allclose(mean.values, np.mean(given, axis=0), atol=1e-8)
    assert mean.sequence == 8
    for part in ("the mean of 3 vectors", "63 bytes", "sequence 8"):
        assert part in text

    options = ("--weights", "1,2,1", "--clip", 0.2, "--dtype", "bf16", "--sequence", 2, "--force", "--json")
    record = cli("vector", "average", *users, "--bundle", smollm2_bundle, "-o", out, *options).record()
    given[2] *= 0.5
    weighted = (given[0] + 2 * given[1] + given[2]) / 4
    mean = read(out, basis)
    np.testing.assert_allclose(mean.values, weighted, rtol=4e-3)
    assert record == {
        "vector": str(out),
        "bytes": 37,
        "vectors": 3,
        "basis_digest": basis.digest,
        "dtype": "bf16",
        "sequence": 2,
        "norm": mean.norm,
        "clip": 0.2,
        "noise": None,
        "clipped": 1 + (read(users[1], basis).norm > 0.2),
    }


def test_noise_is_accounted_for(
    cli: Cli, smollm2_bundle: Path, basis: Basis, users: list[Path], tmp_path: Path
) -> None:
    average = (
        "vector",
        "average",
        *users,
        "--bundle",
        smollm2_bundle,
        "-o",
        tmp_path / "mean.bin",
        "--force",
    )
    private = (*average, "--clip", 0.2, "--delta", 1e-5)
    record = cli(*private, "--epsilon", 4, "--rounds", 3, "--json").record()
    noise = record["noise"]
    z = privacy.noise_multiplier(4, 1e-5, rounds=3)
    assert noise["multiplier"] == pytest.approx(z)
    assert noise["sensitivity"] == pytest.approx(2 * 0.2 / 3)
    assert noise["standard_deviation"] == pytest.approx(z * 2 * 0.2 / 3)
    assert (noise["epsilon"], noise["delta"], noise["rounds"]) == (4, 1e-5, 3)
    assert "clipped" not in record  # it would tell of the users
    first = read(tmp_path / "mean.bin", basis).values
    text = cli(*private, "--noise-multiplier", 1, "--adjacency", "add-or-remove").done()
    assert f"({privacy.epsilon(1.0, 1e-5):.4g}, 1e-05)-differentially private" in text
    assert not (read(tmp_path / "mean.bin", basis).values == first).any()
    record = cli(*average, "--clip", 0.2, "--noise-multiplier", 1, "--json").record()
    assert record["noise"]["epsilon"] is None


def test_a_prior_takes_noise_out(cli: Cli, basis: Basis, users: list[Path], tmp_path: Path) -> None:
    spread = np.float32(1e-4) * np.eye(13, dtype=np.float32)
    file = tmp_path / "learned.gguf"
    save_basis(replace(basis, prior_mean=np.full(13, 0.5, np.float32), prior_covariance=spread), file)
    out = tmp_path / "mean.bin"
    average = ("vector", "average", *users, "--bundle", file, "-o", out, "--force", "--prior")
    noise = ("--clip", 0.2, "--noise-multiplier", 10)
    record = cli(*average, *noise, "--json").record()
    deviation = record["noise"]["standard_deviation"]
    assert record["noise"]["kept"] == pytest.approx(1e-4 / (1e-4 + deviation**2))
    np.testing.assert_allclose(read(out, basis).values, 0.5, atol=1e-3)
    assert "of the noisy mean is kept" in cli(*average, *noise).done()
    before = out.read_bytes()
    cli(*average).refused("takes noise out of a mean, and this one gets none")
    assert out.read_bytes() == before


def test_a_basis_without_a_prior(
    cli: Cli, smollm2_bundle: Path, basis: Basis, users: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "mean.bin"
    average = ("vector", "average", *users, "--bundle", smollm2_bundle, "-o", out, "--prior")
    cli(*average, "--clip", 0.2, "--noise-multiplier", 1).refused(f"basis {basis.id} has no prior")
    assert not out.exists()


def test_a_pipe_carries_the_bytes(cli: Cli, smollm2_bundle: Path, basis: Basis, users: list[Path]) -> None:
    stdin = users[0].read_bytes()
    result = cli("vector", "average", "-", users[1], "--bundle", smollm2_bundle, "-o", "-", stdin=stdin)
    assert result.code == 0
    assert MicroVector.from_bytes(result.stdout_bytes, basis).sequence == 7


def test_one_that_is_refused_stops_the_whole(
    cli: Cli, smollm2_bundle: Path, basis: Basis, users: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.bin"
    average = ("vector", "average", *users, bad, "--bundle", smollm2_bundle, "-o", tmp_path / "mean.bin")

    def refused(data: bytes, *parts: str, options: tuple[object, ...] = ()) -> None:
        bad.write_bytes(data)
        before = contents(tmp_path)
        cli(*average, *options).refused(*parts)
        assert contents(tmp_path) == before

    good = users[0].read_bytes()
    other = support.frame("ab" * 32, bytes(52))
    refused(other, str(bad), "abababab", basis.id)
    refused(good[:-1] + bytes([good[-1] ^ 1]), str(bad), "checksum")
    nan = np.full(13, np.nan, np.float32).tobytes()
    refused(support.frame(basis.digest, nan), str(bad), "value 0 of the vector is nan")
    refused(bytes(52), str(bad), "requires a checksum", "raw payload")
    key = ("--mac", KEY.hex(), "--require", "mac")
    refused(good, str(users[0]), "requires a mac", options=key)
    stranger = MicroVector.zeros(basis).to_bytes(basis, tag=Hmac(bytes(32)))
    refused(stranger, str(bad), "does not verify", options=("--mac", KEY.hex()))
    refused(good, "needs vectors of bounded norm", options=("--noise-multiplier", 1))
    refused(good, "weights, not 2", options=("--weights", "1,1"))
    cli(*average, users[0]).refused(str(users[0]), "named twice")
    cli(*average[:2], users[0], *average[-4:], "--clip", 1, "--noise-multiplier", 1).refused("cannot hide")
    cli(*average[:2], tmp_path / "none.bin", *average[-4:]).refused("none.bin")


def test_vectors_with_a_mac_are_averaged(
    cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path
) -> None:
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.bin")
        made = MicroVector.random(basis, 0.1, seed=number)
        paths[-1].write_bytes(made.to_bytes(basis, tag=Hmac(KEY)))
    out = tmp_path / "mean.bin"
    options = ("--mac", KEY.hex(), "--require", "mac")
    cli("vector", "average", *paths, "--bundle", smollm2_bundle / "basis.gguf", "-o", out, *options).done()
    assert read(out, basis).sequence == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--noise-multiplier", "1", "--epsilon", "1", "--delta", "1e-5"], "not both"),
        (["--epsilon", "1"], "--epsilon needs --delta"),
        (["--delta", "1e-5"], "without noise"),
        (["--weights", "1,x,2"], "'x'"),
        (["--rounds", "0"], "--rounds"),
        (["--adjacency", "both"], "both"),
        (["--dtype", "fp8"], "fp8"),
    ],
)
def test_wrong_usage(
    cli: Cli, smollm2_bundle: Path, users: list[Path], tmp_path: Path, options: list[str], part: str
) -> None:
    out = tmp_path / "mean.bin"
    cli("vector", "average", *users, "--bundle", smollm2_bundle, "-o", out, *options).misused(part)
    cli("vector", "average", "--bundle", smollm2_bundle, "-o", out).misused("FILE")
    cli("vector", "average", *users, "-o", out).misused("--bundle")
    assert not out.exists()
