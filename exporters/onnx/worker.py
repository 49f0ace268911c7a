"""The worker that needs torch and transformers, a process of its own: a GGUF as a Hugging Face directory.

python -m tinylora_edge.exporters.onnx.worker MODEL.gguf DIR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ...formats.gguf import GGUFFile
from ...formats.gguf_transformers import forget_quantizer, read_once


def unpack(source: Path, target: Path) -> None:
    """Write a GGUF model as a Hugging Face directory, float32, with its tokenizer and template."""
    import torch
    import transformers

    location: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    dequantized = transformers.GgufConfig(dequantize=True)
    with read_once():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **location, dtype=torch.float32, quantization_config=dequantized
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(**location)
    forget_quantizer(model)
    model.save_pretrained(target)
    file = GGUFFile(source)
    template = file.get("tokenizer.chat_template")
    if isinstance(template, str) and not tokenizer.chat_template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(target)


def main(arguments: list[str]) -> None:
    """Run it on two paths."""
    source, target = map(Path, arguments)
    try:
        unpack(source, target)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        sys.exit(json.dumps(f"{type(error).__name__}: {error}".splitlines()[0], ensure_ascii=False)[1:-1])


if __name__ == "__main__":
    main(sys.argv[1:])
