"""`vector new`: make a micro-vector."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from .... import Basis, MicroVector
from ...shared import console, vectors
from ...shared.options import BasisArgument, Dtype, ForceOption, JsonOption, OutputOption


def new(
    ctx: typer.Context,
    bundle: BasisArgument,
    output: OutputOption,
    values: Annotated[
        str | None, typer.Option(metavar="LIST", help="The values, row by row, separated by commas.")
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option("--random", metavar="NORM", min=0, help="A random direction of this Euclidean norm."),
    ] = None,
    zeros: Annotated[bool, typer.Option("--zeros", help="The vector that changes nothing.")] = False,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            metavar="NAME=X",
            help="The value of a named axis; the axes that are not named get 0. May be given several times.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Seed of --random. [default: 0]")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type that the values travel in.")] = Dtype.fp32,
    sequence: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Rises with every vector of one stream. [default: above that of FILE, or 1]",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The values alone: no header, no checksum.")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a micro-vector and frame it.

    Say where its values come from: --values, --random, --zeros, or --axis where the basis has names.

    \b
    Examples:
      tinylora-edge vector new out/demo -o vector.bin --random 0.2 --seed 9 --dtype bf16
      tinylora-edge vector new learned -o vector.bin --axis length=-1 --axis formality=0.5
    """
    if [values is not None, norm is not None, zeros, bool(axes)].count(True) != 1:
        raise typer.BadParameter("pass one of --values, --random, --zeros and --axis", ctx=ctx)
    if seed is not None and norm is None:
        raise typer.BadParameter("only --random takes a seed", param_hint="--seed")
    if sequence is not None and raw:
        raise typer.BadParameter("a raw payload has no sequence", param_hint="--sequence")
    vectors.refuse_report(output, as_json)
    numbers = _parse(values) if values is not None else None
    named = _parse_axes(axes or [])
    vectors.check_target(output, force=force)
    basis = vectors.find_basis(bundle)
    if sequence is None:
        sequence = vectors.next_sequence(output, basis)
    if numbers is not None:
        with np.errstate(over="ignore"):  # what does not fit float32 is refused by name
            made = MicroVector(basis.values(numbers), dtype.value, sequence)
    elif named:
        made = MicroVector(_on_axes(basis, named), dtype.value, sequence)
    elif norm is not None:
        drawn = MicroVector.random(basis, norm, seed=seed or 0)
        made = MicroVector(drawn.values, dtype.value, sequence)
    else:
        made = MicroVector(MicroVector.zeros(basis).values, dtype.value, sequence)
    data = made.to_bytes(basis, tag=None if raw else "crc32")
    vectors.write(output, data)
    if output != vectors.STREAM:
        _report(bundle, basis, made, output, data, raw, as_json)


def _parse(values: str) -> list[float]:
    words = [word for word in re.split(r"[,\s]+", values) if word]
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise typer.BadParameter(
            f"{error}: pass numbers, separated by commas", param_hint="--values"
        ) from None


def _parse_axes(axes: Sequence[str]) -> dict[str, float]:
    """Return the value of each axis by name. A name may contain `=`: the last one counts."""
    named: dict[str, float] = {}
    for item in axes:
        name, found, value = item.rpartition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            found = ""
        if not found or not name:
            raise typer.BadParameter(f"{item!r} is not NAME=X, X being a number", param_hint="--axis")
        if name in named:
            raise typer.BadParameter(f"{name!r} is given twice: name each axis once", param_hint="--axis")
        named[name] = number
    return named


def _on_axes(basis: Basis, named: Mapping[str, float]) -> NDArray[np.float32]:
    values = np.zeros(basis.size)
    for name, number in named.items():
        values[basis.axis(name)] = number
    return basis.values(values)


def _report(
    bundle: Path, basis: Basis, made: MicroVector, output: str, data: bytes, raw: bool, as_json: bool
) -> None:
    if as_json:
        console.print_json(
            {
                "vector": output,
                "bytes": len(data),
                "form": "raw" if raw else "frame",
                "dtype": made.dtype,
                "sequence": None if raw else made.sequence,
                "basis_digest": basis.digest,
                "norm": made.norm,
                "values": made.values.tolist(),
            }
        )
        return
    form = "raw payload" if raw else f"frame for basis {basis.id}, sequence {made.sequence}"
    console.prose(f"wrote {output}: {len(data)} bytes, {vectors.summary(made)}, {form}")
    if vectors.is_runnable(bundle):
        console.next_command("run", bundle, "--vector", output, "Describe the moon in one sentence.")
    else:
        console.next_command("vector", "inspect", output, bundle)
