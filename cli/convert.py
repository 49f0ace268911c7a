"""`convert`: a micro-vector in the formats of other programs."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..formats.onnx_adapter import to_adapter
from ..shipping import layout
from . import console, keyfiles, vectors
from .options import (
    BasisArgument,
    JsonOption,
    KeysOption,
    OutputOption,
    StreamOption,
    VectorArgument,
)


class Form(StrEnum):
    """Formats of other programs."""

    gguf_lora = "gguf-lora"
    peft = "peft"
    onnx_adapter = "onnx-adapter"


def convert(
    source: VectorArgument,
    bundle: BasisArgument,
    to: Annotated[Form, typer.Option(help="What to make of it.")],
    output: OutputOption,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The Hugging Face model that the LoRA is for: with --to peft."),
    ] = None,
    keys: KeysOption = None,
    stream: StreamOption = "",
    as_json: JsonOption = False,
) -> None:
    """Convert a vector to a format of other programs. It has no tag there, nor a stream.

    gguf-lora: a LoRA for llama.cpp, Ollama, LM Studio. peft: a LoRA in a directory, for PEFT. onnx-adapter:
    what ONNX Runtime and onnxruntime-genai load in any language.

    \b
    Examples:
      tinylora-edge convert vector.bin out/demo --to gguf-lora -o vector.gguf
      tinylora-edge convert vector.bin out/demo --to peft --model SmolLM2-135M-Instruct -o lora
    """
    if (to is Form.peft) != (model is not None):
        why = (
            "peft is for a Hugging Face model: name its directory" if model is None else "--to peft takes it"
        )
        raise typer.BadParameter(why, param_hint="--model")
    if output == vectors.STREAM and to is not Form.onnx_adapter:
        raise console.CommandError(f"{to.value} is no stream of bytes: pass -o PATH")
    vectors.refuse_report(output, as_json)
    target = Path(output)
    if to is not Form.peft:
        vectors.check_target(output)
    elif target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already: choose another output, or remove it first")
    basis = vectors.find_basis(bundle)
    policy = keyfiles.policy(keys)
    vector = policy.check(vectors.read(source), basis, stream=layout.bound_name(stream))
    if to is Form.onnx_adapter:
        vectors.write(output, to_adapter(vector, basis))
    elif to is Form.gguf_lora:
        from ..exporters.convert import write_gguf_lora

        write_gguf_lora(basis, vector, target)
    else:
        from ..exporters.convert import write_peft_lora

        assert model is not None
        write_peft_lora(basis, vector, target, model)
    if output == vectors.STREAM:
        return
    if as_json:
        console.print_json(
            {
                "to": to.value,
                "output": output,
                "sequence": vector.sequence,
                "basis_digest": basis.digest,
                "norm": vector.norm,
            }
        )
        return
    console.prose(f"wrote {output}: {vectors.summary(vector)}, as {to.value}, for basis {basis.id}")
    if to is Form.gguf_lora:
        console.say(f"in a Modelfile: ADAPTER {shlex.quote(output)}")
