"""`convert`: micro-vectors to and from the formats of other ecosystems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .... import Basis, BasisMismatchError, MicroVector, Policy
from ....formats.onnx_adapter import from_adapter, is_adapter, to_adapter
from ...shared import console, keyfiles, vectors
from ...shared.options import (
    Dtype,
    ForceOption,
    JsonOption,
    KeysOption,
    MacsOption,
    MarkStreamOption,
    OutputOption,
    TrustOption,
)
from . import interop


class VectorForm(StrEnum):
    """Forms that a vector can be written in."""

    frame = "frame"
    raw = "raw"
    onnx_adapter = "onnx-adapter"
    scales = "scales"
    gguf_lora = "gguf-lora"
    gguf_loras = "gguf-loras"
    peft = "peft"
    lora = "lora"
    bundle = "bundle"


@dataclass(frozen=True)
class _Form:
    """A form: how it is told, read and written. A further one is a further entry of `_FORMS`."""

    matches: Callable[[bytes], bool]
    read: Callable[[bytes, Basis, Policy, str], MicroVector]
    write: Callable[[MicroVector, Basis], bytes]
    carries: tuple[Dtype, ...]


def _read_wire(data: bytes, basis: Basis, policy: Policy, stream: str) -> MicroVector:
    return policy.check(data, basis, stream=stream)


def _tagless(
    read: Callable[[bytes, Basis], MicroVector],
) -> Callable[[bytes, Basis, Policy, str], MicroVector]:
    """A reader of a format that has nothing for a policy to check."""
    return lambda data, basis, policy, stream: read(data, basis)


# In the order in which they are tried: what begins with a mark of its own, then what has a parity.
_FORMS = {
    VectorForm.onnx_adapter: _Form(
        is_adapter,
        _tagless(from_adapter),
        to_adapter,
        (Dtype.fp32,),
    ),
    VectorForm.scales: _Form(
        interop.is_scales, _tagless(interop.read_scales), interop.write_scales, (Dtype.fp32,)
    ),
    VectorForm.frame: _Form(
        lambda data: len(data) % 2 == 1,
        _read_wire,
        lambda vector, basis: vector.to_bytes(basis),
        tuple(Dtype),
    ),
    VectorForm.raw: _Form(
        lambda data: True,
        _read_wire,
        lambda vector, basis: vector.to_bytes(basis, tag=None),
        (Dtype.fp32, Dtype.bf16),
    ),
}


def convert(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="The vector; - is stdin. Or a PEFT TinyLoRA checkpoint.")
    ],
    to: Annotated[VectorForm, typer.Option(help="What to make of it.")],
    output: OutputOption,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            "-b",
            metavar="BUNDLE",
            help="The bundle, or basis, that it is for; a checkpoint has one.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The Hugging Face model that PEFT adapts: for peft, lora, a checkpoint."
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="GGUF", help="The deployed model: for a checkpoint to bundle.")
    ] = None,
    untie: Annotated[
        bool, typer.Option("--untie", help="To peft: give each layer a copy of its group's values.")
    ] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type that the values travel in. [default: as they came]")
    ] = None,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    stream: MarkStreamOption = "",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a vector to another format; which one FILE has is seen from its bytes.

    onnx-adapter: what ONNX Runtime and onnxruntime-genai load in any language. It has float32 values and the
    sequence, but no tag. scales and gguf-loras: for stock llama-server, u = 1. gguf-lora: one LoRA with the
    vector in it, for Ollama, LM Studio, llama.rn. peft: a PEFT TinyLoRA checkpoint. lora: a plain PEFT LoRA.
    bundle: of a PEFT TinyLoRA checkpoint. A vector with a MAC or a signature is checked under the keys
    given; what is made of it has no such tag, and is of the default stream.

    \b
    Examples:
      tinylora-edge convert vector.bin --bundle out/demo --to onnx-adapter -o vector.onnx_adapter
      tinylora-edge convert vector.onnx_adapter --bundle out/demo --to frame --dtype bf16 -o vector.bin
      tinylora-edge convert vector.bin --bundle out/demo --to gguf-lora -o vector.gguf
      tinylora-edge convert checkpoint --to bundle --model smollm2-hf --base smollm2.gguf -o imported
    """
    vectors.refuse_report(output, as_json)
    asked = interop.Request(to.value, Path(output), bundle, model, base, untie, force)
    asked.check()
    policy, stream = keyfiles.policy(keys, macs, trust=trust), keyfiles.stream_of(stream)
    if to not in _FORMS:
        if dtype is not None:
            raise typer.BadParameter(f"{to.value} carries fp32", param_hint="--dtype")
        basis, found, form_name = _read(source, asked, policy, stream)
        with console.working(f"writing {to.value}"):
            done = asked.write(basis, found)
        _report(done, basis, found, form_name, to, as_json)
        return
    target = _FORMS[to]
    if dtype is not None and dtype not in target.carries:
        carried = " or ".join(each.value for each in target.carries)
        raise typer.BadParameter(f"{to.value} carries {carried}", ctx=ctx, param_hint="--dtype")
    vectors.check_target(output, force=force)
    basis, found, form_name = _read(source, asked, policy, stream)
    travels = dtype or (Dtype(found.dtype) if Dtype(found.dtype) in target.carries else target.carries[0])
    made = MicroVector(found.values, travels.value, found.sequence)
    written = target.write(made, basis)
    vectors.write(output, written)
    if output == vectors.STREAM:
        return
    if as_json:
        console.print_json(
            {
                "from": form_name,
                "to": to.value,
                "vector": output,
                "bytes": len(written),
                "dtype": made.dtype,
                "sequence": None if to is VectorForm.raw else made.sequence,
                "basis_digest": basis.digest,
                "norm": made.norm,
                "exact": bool((made.values == found.values).all()),
            }
        )
        return
    console.prose(
        f"wrote {output}: {len(written)} bytes, {vectors.summary(made)}, "
        f"{form_name} to {to.value} for basis {basis.id}"
    )


def _read(source: str, asked: interop.Request, policy: Policy, stream: str) -> tuple[Basis, MicroVector, str]:
    """Return the basis and the vector of a source, and which form it had."""
    if interop.is_checkpoint(source):
        basis, vector = asked.read_checkpoint(Path(source))
        if asked.bundle is not None:
            given = vectors.find_basis(asked.bundle)
            if given.digest != basis.digest:
                raise BasisMismatchError(
                    f"the checkpoint is for basis {basis.id}, but {asked.bundle} has {given.id}: use the "
                    "bundle that was made from it"
                )
        return basis, vector, VectorForm.peft.value
    if asked.bundle is None:
        raise typer.BadParameter("a vector belongs to a bundle: name it", param_hint="--bundle")
    basis = vectors.find_basis(asked.bundle)
    if interop.is_lora(source):
        return basis, interop.read_lora(source, basis), VectorForm.gguf_lora.value
    data = vectors.read(source)
    form = next(name for name, each in _FORMS.items() if each.matches(data))
    return basis, _FORMS[form].read(data, basis, policy, stream), form.value


def _report(
    done: interop.Done, basis: Basis, vector: MicroVector, source_form: str, to: VectorForm, as_json: bool
) -> None:
    if as_json:
        console.print_json(
            {
                "from": source_form,
                "to": to.value,
                "output": str(done.output),
                "files": [str(path) for path in done.files],
                "sequence": vector.sequence,
                "basis_digest": basis.digest,
                "norm": vector.norm,
            }
        )
        return
    console.prose(
        f"wrote {done.output}: {basis.size} values, norm {vector.norm:.4g}, {source_form} to {to.value} "
        f"for basis {basis.id}"
    )
    if done.hint:
        console.say(done.hint)
