"""`convert`: a micro-vector in the formats of other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from typer import BadParameter, Option

from tinylora_edge import load_bundle
from tinylora_edge.formats.onnx_adapter import to_adapter
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, vectors
from . import options as opts


def convert(
    source: opts.VectorArgument,
    bundle: opts.BasisArgument,
    to: Annotated[Literal["gguf", "gguf-lora", "peft", "onnx-adapter"], Option(help="Format to write.")],
    output: opts.OutputOption,
    model: Annotated[
        Path | None, Option(metavar="DIR", help="The Hugging Face model, for --to peft.")
    ] = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
    as_json: opts.JsonOption = False,
) -> None:
    """Convert a vector to the format of another program, which has neither tag nor user.

    gguf-lora: a LoRA for llama.cpp. peft: a LoRA in a directory, for PEFT, vLLM and SGLang. onnx-adapter: an
    adapter that ONNX Runtime and onnxruntime-genai load in any language. gguf: the whole model with the
    vector merged into it, for Ollama and others without adapters; quantized weights that the vector changes
    become Q8_0, and floats keep their type.

    \b
    Examples:
      tinylora-edge convert vector.bin out/demo --to gguf-lora -o vector.gguf
      tinylora-edge convert vector.bin out/demo --to gguf -o merged.gguf
      tinylora-edge convert vector.bin out/demo --to peft --model SmolLM2-135M-Instruct -o lora
    """
    if (to == "peft") != (model is not None):
        why = "--to peft needs the Hugging Face model, and no other format does"
        raise BadParameter(why, param_hint="--model")
    if output == vectors.STREAM and to != "onnx-adapter":
        raise console.CommandError(f"--to {to} cannot write to stdout: pass -o PATH")
    target = Path(output)
    vectors.check_target(output, as_json=as_json)
    if to == "gguf":
        found = load_bundle(bundle)
        if found.base.is_dir():
            raise console.CommandError(f"{bundle} has no GGUF to merge into: export with --format both")
        found.check_base()
    bases = found.bases if to == "gguf" else vectors.find_bases(bundle)
    vector = keyfiles.policy(keys).check(vectors.read(source), bases, user=bound_name(user))
    basis = bases.of(vector)
    if to == "onnx-adapter":
        vectors.write(output, to_adapter(vector, basis))
    else:
        from tinylora_edge.exporters.convert import write_gguf_lora, write_merged_gguf, write_peft_lora

        if to == "gguf":
            write_merged_gguf(basis, vector, found.base, target)
        elif model is not None:
            write_peft_lora(basis, vector, target, model)
        else:
            write_gguf_lora(basis, vector, target)
    if output == vectors.STREAM:
        return
    record = {"to": to, "output": output, "sequence": vector.sequence, "rank": basis.rank}
    record |= {"basis": basis.digest, "norm": vector.norm}
    sentences = [f"wrote {output}: {vectors.summary(vector)}, as {to}, for basis {basis.id}"]
    sentences += [f"in a Modelfile: FROM {shlex.quote(str(target.resolve()))}"] if to == "gguf" else []
    console.report(record, as_json, *sentences)
