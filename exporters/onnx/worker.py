"""The worker that needs torch and transformers: a process of its own.

python -m tinylora_edge.exporters.onnx.worker ...

unpack MODEL.gguf DIR     a GGUF as a Hugging Face directory, float32, with its tokenizer and template
trace DIR GRAPH           the graph of a Hugging Face directory by torch.onnx.export, with a KV cache
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ...formats.gguf import GGUFFile, read_once
from ...formats.onnx_graph import MODEL_NAME


def unpack(source: Path, target: Path) -> None:
    """Write a GGUF model as a Hugging Face directory."""
    import torch
    import transformers

    location: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    dequantized = transformers.GgufConfig(dequantize=True)
    with read_once():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **location, dtype=torch.float32, quantization_config=dequantized
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(**location)
    # Dequantized already: a directory that says otherwise would be quantized again on the next load.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name) if name in vars(model) else setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    file = GGUFFile(source)
    template = file.get("tokenizer.chat_template")
    if isinstance(template, str) and not tokenizer.chat_template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(target)


def trace(source: Path, target: Path) -> None:
    """Export a Hugging Face directory with torch's exporter: input_ids, attention_mask, position_ids and the
    cache in, logits and the cache out, named as onnxruntime-genai's builder names them."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    class PlainCacheModel(torch.nn.Module):
        """The model with its cache as plain tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any
        ) -> tuple[Any, ...]:
            pairs = list(zip(past[::2], past[1::2], strict=True))
            cache = transformers.DynamicCache(pairs)
            out = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            present = [part for layer in cache.layers for part in (layer.keys, layer.values)]
            return (out.logits, *present)

    batch, step, before = 2, 3, 4  # any sizes that no dimension of the model shares by accident
    past = [torch.zeros(batch, heads, before, width) for _ in range(2 * layers)]
    example = (
        torch.zeros(batch, step, dtype=torch.int64),
        torch.ones(batch, before + step, dtype=torch.int64),
        torch.arange(before, before + step).repeat(batch, 1),
        *past,
    )
    dim = torch.export.Dim
    sizes = {"batch": dim("batch_size"), "step": dim("sequence_length"), "past": dim("past_sequence_length")}
    names = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    shapes = (
        {0: sizes["batch"], 1: sizes["step"]},
        {0: sizes["batch"], 1: dim.AUTO},
        {0: sizes["batch"], 1: sizes["step"]},
        tuple({0: sizes["batch"], 2: sizes["past"]} for _ in past),
    )
    torch.onnx.export(
        PlainCacheModel().eval(),
        example,
        str(target / MODEL_NAME),
        dynamo=True,
        external_data=True,
        dynamic_shapes=shapes,
        input_names=["input_ids", "attention_mask", "position_ids", *names],
        output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
        verbose=False,
    )
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".txt", ".model") and "safetensors" not in path.name:
            shutil.copyfile(path, target / path.name)


def main(arguments: list[str]) -> None:
    """Run one of the two, on paths."""
    name, source, target = arguments
    try:
        {"unpack": unpack, "trace": trace}[name](Path(source), Path(target))
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        sys.exit(json.dumps(f"{type(error).__name__}: {error}".splitlines()[0], ensure_ascii=False)[1:-1])


if __name__ == "__main__":
    main(sys.argv[1:])
