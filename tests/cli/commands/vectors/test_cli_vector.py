"""`vector new` and `vector inspect`: bytes out, bytes in, and what is refused."""

from __future__ import annotations

import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
import support
from invocation import Cli, contents

from tinylora_edge import Basis, MicroVector, save_basis

VALUES = [0.1, -0.2, 0.3, 0, 1e-3, -1, 2.5, 0.25, -0.125, 0.5, 7, -7, 0.0625]
LIST = ",".join(map(str, VALUES))


def test_values_become_the_frame_that_the_format_prescribes(
    cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path
) -> None:
    out = tmp_path / "v.bin"
    stdout = cli("vector", "new", smollm2_bundle, "-o", out, "--values", LIST, "--sequence", 7).done()

    expected = support.frame(basis.digest, struct.pack("<13f", *VALUES), sequence=7)
    assert out.read_bytes() == expected
    assert len(expected) == 63
    assert "63 bytes" in stdout
    assert basis.id in stdout
    assert f"next: tinylora-edge run {smollm2_bundle} --vector {out}" in stdout


@pytest.mark.parametrize(("dtype", "size"), [("bf16", 37), ("fp16", 37), ("fp32", 63)])
def test_random_has_the_norm_and_the_dtype_asked_for(
    cli: Cli, smollm2_bundle: Path, basis: Basis, dtype: str, size: int
) -> None:
    new = ("vector", "new", smollm2_bundle, "-o", "-", "--dtype", dtype, "--random")
    first, again, other, longer = (
        cli(*new, *rest) for rest in ((2, "--seed", 3), (2, "--seed", 3), (2, "--seed", 4), (4, "--seed", 3))
    )

    assert first.stdout_bytes == again.stdout_bytes != other.stdout_bytes
    assert len(first.stdout_bytes) == size
    vector, twice = (MicroVector.from_bytes(r.stdout_bytes, basis) for r in (first, longer))
    assert vector.dtype == dtype
    assert vector.norm == pytest.approx(2, rel=4e-3)
    np.testing.assert_allclose(twice.values, 2 * vector.values, rtol=4e-3)


def test_zeros_and_raw(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    for dtype, size in (("fp32", 52), ("bf16", 26)):
        result = cli("vector", "new", smollm2_bundle, "-o", "-", "--zeros", "--raw", "--dtype", dtype)
        assert result.stdout_bytes == bytes(size)
        assert result.stderr == ""


def test_json_report(cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path) -> None:
    out = tmp_path / "v.bin"
    new = ("vector", "new", smollm2_bundle, "-o", out, "--random", 1, "--dtype", "bf16", "--json")
    record = cli(*new).record()

    vector = MicroVector.from_bytes(out.read_bytes(), basis)
    assert record == {
        "vector": str(out),
        "bytes": 37,
        "form": "frame",
        "dtype": "bf16",
        "sequence": 1,
        "basis_digest": basis.digest,
        "norm": vector.norm,
        "values": vector.values.tolist(),
    }


def test_a_basis_alone_is_enough(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    alone = tmp_path / "any.gguf"
    alone.write_bytes((smollm2_bundle / "basis.gguf").read_bytes())

    stdout = cli("vector", "new", alone, "-o", tmp_path / "a.bin", "--values", LIST).done()
    cli("vector", "new", smollm2_bundle, "-o", tmp_path / "b.bin", "--values", LIST).done()

    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert f"next: tinylora-edge vector inspect {tmp_path / 'a.bin'} {alone}" in stdout


def test_an_existing_file_is_replaced_only_by_force(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.bin"
    out.write_bytes(b"precious")
    new = ("vector", "new", smollm2_bundle, "-o", out, "--zeros")

    cli(*new).refused(str(out), "exists already", "--force")
    assert contents(tmp_path) == {"v.bin": b"precious"}

    cli(*new, "--force").done()
    assert len(out.read_bytes()) == 63
    assert list(contents(tmp_path)) == ["v.bin"]


def test_force_never_replaces_what_is_no_file(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    for target in ("/dev/null", tmp_path):
        cli("vector", "new", smollm2_bundle, "-o", target, "--zeros", "--force").refused(
            str(target), "not a regular file"
        )
    assert Path("/dev/null").is_char_device()


def test_force_follows_a_link(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    link.symlink_to(real)
    cli("vector", "new", smollm2_bundle, "-o", link, "--zeros", "--force").done()
    assert link.is_symlink()
    assert len(real.read_bytes()) == 63


def test_a_missing_directory(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    cli("vector", "new", smollm2_bundle, "-o", tmp_path / "no" / "v.bin", "--zeros").refused(
        str(tmp_path / "no"), "not a directory"
    )
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--values", "0.1,0.2"], ["2 values", "13"]),
        (["--values", ",".join(["0"] * 14)], ["14 values", "13"]),
        (["--values", LIST.replace("7", "nan", 1)], ["value 10", "nan"]),
        (["--values", LIST.replace("7", "1e39", 1)], ["value 10", "inf"]),
        (["--values", LIST.replace("7", "7e4", 1), "--dtype", "fp16"], ["value 10", "70000", "fp16"]),
        (["--random", "inf"], ["finite"]),
        (["--zeros", "--raw", "--dtype", "fp16"], ["bf16", "fp16"]),
    ],
)
def test_values_that_cannot_be_shipped(
    cli: Cli, smollm2_bundle: Path, tmp_path: Path, options: list[str], parts: list[str]
) -> None:
    cli("vector", "new", smollm2_bundle, "-o", tmp_path / "v.bin", *options).refused(*parts)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "one of --values, --random, --zeros and --axis"),
        (["--zeros", "--random", "1"], "one of --values, --random, --zeros and --axis"),
        (["--zeros", "--seed", "1"], "--seed"),
        (["--values", "0.1,x"], "'x'"),
        (["--random", "-1"], "--random"),
        (["--random", "nan"], "--random"),
        (["--zeros", "--sequence", "65536"], "--sequence"),
        (["--zeros", "--raw", "--sequence", "1"], "raw payload has no sequence"),
        (["--zeros", "--dtype", "fp8"], "fp8"),
    ],
)
def test_wrong_usage(cli: Cli, smollm2_bundle: Path, tmp_path: Path, options: list[str], part: str) -> None:
    cli("vector", "new", smollm2_bundle, "-o", tmp_path / "v.bin", *options).misused(part)
    assert contents(tmp_path) == {}


def test_a_pipe_carries_the_bytes(process: Cli, smollm2_bundle: Path, basis: Basis) -> None:
    made = process("vector", "new", smollm2_bundle, "-o", "-", "--values", LIST)
    assert made.code == 0
    assert made.stderr == ""

    shown = process("vector", "inspect", "-", smollm2_bundle, "--json", stdin=made.stdout_bytes)
    record = shown.record()
    assert record["values"] == np.float32(VALUES).reshape(13, 1).tolist()
    assert record["verified"] is True


def test_inspect_without_a_basis_says_what_the_header_says(cli: Cli, basis: Basis) -> None:
    for dtype, payload in (("fp32", bytes(52)), ("bf16", bytes(26)), ("fp16", bytes(26))):
        for tag, key in (("crc32", None), ("hmac", b"k" * 16)):
            data = support.frame(basis.digest, payload, dtype=dtype, tag=tag, key=key, sequence=258)
            assert cli("vector", "inspect", "-", "--json", stdin=data).record() == {
                "kind": "vector",
                "verified": False,
                "form": "frame",
                "bytes": len(data),
                "version": 2,
                "dtype": dtype,
                "tag": {"crc32": "CRC-32", "hmac": "HMAC"}[tag],
                "basis_id": basis.digest[:8],
                "sequence": 258,
                "count": 13,
            }
    text = cli("vector", "inspect", "-", stdin=data).done()
    assert "not checked" in text
    assert basis.id in text
    assert "13 fp16" in text


def test_inspect_advises_a_command_that_works(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "v one.bin"
    cli("vector", "new", smollm2_bundle, "-o", out, "--values", LIST).done()
    for command in (("vector", "inspect", out), ("inspect", out)):
        advice = cli(*command).done().partition("next: tinylora-edge ")[2].splitlines()[0]
        words = [str(smollm2_bundle) if word == "BUNDLE" else word for word in shlex.split(advice)]
        assert words[: len(command)] == [str(word) for word in command]
        assert "verified" in cli(*words).done()


def test_inspect_of_a_raw_payload_without_a_basis(cli: Cli) -> None:
    record = cli("vector", "inspect", "-", "--json", stdin=bytes(52)).record()
    assert (record["form"], record["values_if"]) == ("raw", {"fp32": 13, "bf16": 26})
    record = cli("vector", "inspect", "-", "--json", stdin=bytes(26)).record()
    assert record["values_if"] == {"bf16": 13}
    assert "13 bf16" in cli("vector", "inspect", "-", stdin=bytes(26)).done()


def test_inspect_with_a_basis_shows_the_values(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.bin"
    cli("vector", "new", smollm2_bundle, "-o", out, "--values", LIST, "--dtype", "bf16").done()
    direct = cli("vector", "inspect", out, smollm2_bundle).done()
    assert direct == cli("inspect", out, "--bundle", smollm2_bundle).done()
    assert direct == cli("inspect", out, "--basis", smollm2_bundle / "basis.gguf").done()
    assert "CRC-32, verified" in direct
    for group, value in enumerate(("0.100098", "-0.200195")):
        assert any(line.split() == ["group", str(group), value] for line in direct.splitlines())


def test_a_raw_payload_is_taken_with_a_warning(cli: Cli, smollm2_bundle: Path) -> None:
    result = cli("vector", "inspect", "-", smollm2_bundle, stdin=bytes(52))
    assert result.code == 0
    assert result.stderr.startswith("warning: a raw payload has no checksum")
    assert result.stderr.count("\n") == 1


def test_sequences_begin_with_1_and_rise_above_what_is_replaced(cli: Cli, tmp_path: Path) -> None:
    save_basis(support.random_basis(blocks=5, groups=13), tmp_path / "b.basis.gguf")
    save_basis(support.random_basis(blocks=5, groups=13, seed=43), tmp_path / "other.basis.gguf")
    out = tmp_path / "v.bin"
    new = ("vector", "new", tmp_path / "b.basis.gguf", "-o", out, "--zeros", "--json")
    assert cli(*new).record()["sequence"] == 1
    assert cli(*new, "--force").record()["sequence"] == 2
    assert cli(*new, "--force", "--sequence", 7).record()["sequence"] == 7
    assert cli(*new, "--force").record()["sequence"] == 8
    cli(*new, "--force", "--sequence", 65535).done()
    cli(*new, "--force").refused("sequence 65535", "--sequence")
    other = ("vector", "new", tmp_path / "other.basis.gguf", *new[3:], "--force")
    assert cli(*other).record()["sequence"] == 1, "another basis has sequences of its own"
    out.write_bytes(b"something else")
    assert cli(*new, "--force").record()["sequence"] == 1
