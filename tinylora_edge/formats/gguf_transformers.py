"""A GGUF model in transformers: loaded dequantized, all files of a split one, and its layers' names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .gguf import GGUFFile, gguf_paths, open_gguf

# The scaling parameters of every Llama 3. A GGUF has the frequencies that result from them instead.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

_TURN = threading.RLock()  # held while functions of the gguf package are replaced, for all threads


@contextmanager
def read_once() -> Iterator[None]:
    """Have transformers read a GGUF's metadata once during the block, and make the map of names once.

    Its loader reads them three times, element by element through `numpy.memmap`, and makes the map again for
    each module: 14 of 18 seconds for SmolLM2 (transformers 5). Threads take turns.
    """
    with _TURN:
        reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map

        class Reader(reader):  # type: ignore[valid-type, misc]
            """The library's reader of all files of a split model, over a plain array, whose slices are
            cheaper than those of a `memmap`."""

            def __init__(self, path: Any, mode: Any = "r") -> None:
                super().__init__(path, mode)
                for more in gguf_paths(path)[1:]:
                    self.tensors += reader(more).tensors

            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, np.asarray(value) if isinstance(value, np.memmap) else value)

        gguf.GGUFReader = cache(Reader)  # type: ignore[assignment, misc]
        gguf.get_tensor_name_map = cache(name_map)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map  # type: ignore[misc]


def read_model(path: Path, dtype: Any) -> Any:
    """Return a GGUF model in a float type of torch; errors are transformers', or a ValueError.

    transformers 5 reads no scaling of positions, and fills what a file lacks with random numbers.
    """
    import transformers

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    place["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with read_once():
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        _scale_positions(config, open_gguf(path))
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=dtype, output_loading_info=True
        )
    if missing := found["missing_keys"]:
        raise ValueError(f"it lacks {min(missing)}")
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):  # trainers refuse a model with these
        if hasattr(model, name):
            delattr(model, name) if name in vars(model) else setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _scale_positions(config: Any, file: GGUFFile) -> None:
    """Set in a configuration how llama.cpp scales positions. ValueError: in a way that is not known here."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    prefix, rope = f"{file.architecture}.rope.scaling.", getattr(config, "rope_parameters", {})
    rope = rope.get("full_attention", rope)  # of the two kinds of layers that Gemma has
    kind, scaled = file.get(f"{prefix}type", "linear"), {"factor": file.get(f"{prefix}factor", 1.0)}
    if found := file.tensors.get("rope_freqs.weight"):
        kind, scaled = "llama3", {"factor": float(file.array(found).max()), **_LLAMA3}
    elif "rope_factors_long.weight" in file.tensors:
        kind = "longrope"
    elif kind == "none" or scaled["factor"] in (0.0, 1.0):
        return
    elif kind == "yarn":
        trained = file.get(f"{prefix}original_context_length") or config.max_position_embeddings
        scaled["original_max_position_embeddings"] = trained
    rope |= {"rope_type": kind, **scaled}
    known = kind in ("linear", "llama3", "yarn")
    if known and found:
        own = ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].numpy()
        plain = rope["rope_theta"] ** -(np.arange(len(own)) / len(own))
        known = np.allclose(own * file.array(found)[: len(own)], plain, 1e-3, 0)
    if not known:
        raise ValueError(f"its positions are scaled by {kind}, in a way that is not read from a GGUF")


def layer_names(architecture: str, blocks: int) -> Callable[[str], str | None]:
    """Return the map from names of layers in transformers to names of tensors in a GGUF, or None.

    Both names are without `.weight`; `architecture` is a `general.architecture`.
    """
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[architecture], blocks)
    # convert_hf_to_gguf leaves the prefix out, which the language model of a vision model has.
    return lambda layer: table.get_name(layer.replace("language_model.", ""))
