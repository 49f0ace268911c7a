"""Plain PEFT LoRAs as GGUF LoRAs: llama.cpp's logits with the file are torch's with PEFT."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tinylora_edge import BaseMismatchError, ExportError, UnsupportedModelError, runtime
from tinylora_edge.exporters import export_gguf
from tinylora_edge.exporters.interop.peft_lora import lora_to_gguf
from tinylora_edge.limits import BLOCKS

TOKENS = [1, 5, 9, 33, 7, 21]
OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "type_k": 0, "type_v": 0}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

pytestmark = pytest.mark.filterwarnings("ignore")

Save = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model, folder = models.tiny_model("llama"), tmp_path_factory.mktemp("tiny")
    gguf = models.write_gguf(model, folder / "tiny.gguf")
    return model, export_gguf(gguf, folder / "bundle").output


@pytest.fixture
def save(tiny: tuple[Any, Path], tmp_path: Path) -> Save:
    """Make a LoRA that does something, save it, and return its directory and the model with it."""

    def saved(**options: Any) -> tuple[Path, Any]:
        settings = {"r": 4, "lora_alpha": 6, "target_modules": ALL, "task_type": "CAUSAL_LM", **options}
        trained = get_peft_model(copy.deepcopy(tiny[0]), LoraConfig(**settings)).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if ".lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        trained.save_pretrained(tmp_path / "peft")
        return tmp_path / "peft", trained

    return saved


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
            "alpha_pattern": {"k_proj": 1},
        },
    ],
)
def test_the_same_function(
    tiny: tuple[Any, Path], save: Save, tmp_path: Path, options: dict[str, Any]
) -> None:
    model, bundle = tiny
    directory, trained = save(**options)
    lora_to_gguf(directory, bundle / "base.gguf", tmp_path / "lora.gguf")
    with runtime.load(bundle, engine="llama", lora_path=str(tmp_path / "lora.gguf"), **OPTIONS) as llm:
        ours = models.llama_logits(llm, TOKENS)
    theirs, base = models.torch_logits(trained, TOKENS), models.torch_logits(model, TOKENS)
    assert np.abs(theirs - base).max() > 0.1, "the adapter does something"
    assert np.abs(ours - theirs).max() < 1e-3


def test_what_a_gguf_lora_cannot_say(tiny: tuple[Any, Path], save: Save, tmp_path: Path) -> None:
    base, output = tiny[1] / "base.gguf", tmp_path / "lora.gguf"
    directory, _ = save(use_dora=True)
    with pytest.raises(UnsupportedModelError, match="is a LoRA with use_dora"):
        lora_to_gguf(directory, base, output)
    with pytest.raises(ExportError, match=r"lacks adapter_config\.json"):
        lora_to_gguf(tmp_path, base, output)
    assert not output.exists()


def test_a_base_of_more_blocks_than_are_read(tiny: tuple[Any, Path], save: Save, tmp_path: Path) -> None:
    metadata: dict[str, str | int] = {"llama.block_count": BLOCKS + 1}
    base = models.write_gguf(tiny[0], tmp_path / "deep.gguf", metadata=metadata)
    directory, _ = save()
    with pytest.raises(ExportError, match=r"deep\.gguf has 4,097 blocks, .* at most 4,096"):
        lora_to_gguf(directory, base, tmp_path / "lora.gguf")


def test_a_lora_of_another_model(tiny: tuple[Any, Path], save: Save, tmp_path: Path) -> None:
    small = models.write_gguf(models.tiny_model("llama", blocks=1), tmp_path / "small.gguf")
    directory, _ = save()
    with pytest.raises(BaseMismatchError, match=r"adapts model\.layers\.1\.\w+\.\w+, and small\.gguf has no"):
        lora_to_gguf(directory, small, tmp_path / "lora.gguf")
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))
    with pytest.raises(ExportError, match="of type LOHA, not LORA"):
        lora_to_gguf(directory, tiny[1] / "base.gguf", tmp_path / "lora.gguf")
