"""`vector receipt`: a device's word for what it runs, and its check by the host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .... import FrameError, Policy
from ....system import check_path
from ....wire import statements, text
from ...shared import console, keyfiles, vectors
from ...shared.options import (
    BasisArgument,
    ForceOption,
    JsonOption,
    KeysOption,
    MarkStreamOption,
    TrustOption,
    VectorArgument,
)

_MAX_READ = 1 << 12


def receipt(
    source: VectorArgument,
    bundle: BasisArgument,
    mac: Annotated[
        str, typer.Option("--mac", metavar="KEY", help="The device's MAC key: a file, or hexadecimal digits.")
    ],
    keys: KeysOption = None,
    trust: TrustOption = None,
    stream: MarkStreamOption = "",
    challenge: Annotated[
        str, typer.Option(metavar="HEX", help="Bytes of the host's, so that the receipt is a new one.")
    ] = "",
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="RECEIPT", help="Check this receipt of FILE instead; - is stdin."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="Where the receipt goes; - is stdout.")
    ] = vectors.STREAM,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the receipt of a vector, as a device that runs it: 23 bytes with a MAC, for the way back.

    With --check, check one on the host: that the device with this key runs FILE, and not another vector.

    \b
    Examples:
      tinylora-edge vector receipt v1.bin out/demo --mac device-17.mac --key fleet.key.pub -o r.bin
      tinylora-edge vector receipt v1.bin out/demo --mac device-17.mac --key fleet.key.pub --check r.bin
    """
    if check == source == vectors.STREAM:
        raise typer.BadParameter("stdin carries the vector: name a file", param_hint="--check")
    if check is None:
        vectors.refuse_report(output, as_json)
        vectors.check_target(output, force=force)
    asked = _challenge(challenge)
    key = keyfiles.mac(mac)
    basis = vectors.find_basis(bundle)
    data = vectors.read(source)
    bound = keyfiles.stream_of(stream)
    policy = Policy("none", keys=[key, *keyfiles.verifiers(keys, None)], trust=trust, today=None)
    vector = policy.check(data, basis, stream=bound)
    facts = {"vector": source, "sequence": vector.sequence, "sha256": vector.sha256, "key": key.id}
    if check is not None:
        found = statements.decode_receipt(_read(check), basis.digest, bound, [key], asked)
        if not found.names(data):
            raise console.CommandError(
                f"the device runs another vector: its receipt has sequence {found.sequence} and hash "
                f"{found.hash.hex()}, but {source} has {vector.sequence} and {vector.sha256[:16]}"
            )
        if as_json:
            console.print_json({"holds": True, **facts})
        else:
            console.say(f"the device with the key {key.id} runs {source}: sequence {vector.sequence}")
        return
    made = statements.encode_receipt(vector.sequence, vector.sha256, basis.digest, bound, key, asked)
    vectors.write(output, made)
    if output == vectors.STREAM:
        return
    if as_json:
        console.print_json({"receipt": output, "bytes": len(made), **facts})
    else:
        console.prose(
            f"wrote {output}: {len(made)} bytes, the receipt of sequence {vector.sequence} under {key.id}"
        )


def _read(source: str) -> bytes:
    """Return the bytes of a receipt; they may be text, as those of a vector."""
    if source == vectors.STREAM:
        data = sys.stdin.buffer.read(_MAX_READ)
    else:
        check_path(source, FrameError)
        with Path(source).open("rb") as file:
            data = file.read(_MAX_READ)
    return text.decode(data) if text.is_text(data) else data


def _challenge(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise typer.BadParameter(
            f"{digits[:40]!r} is no even number of hexadecimal digits", param_hint="--challenge"
        ) from None
