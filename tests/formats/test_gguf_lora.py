"""Stock GGUF LoRAs: those of a base pass, and what is refused is refused with both values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from tinylora_edge import BaseMismatchError
from tinylora_edge.formats.gguf import UINT32, write
from tinylora_edge.formats.gguf_lora import check_lora

Q = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_gguf(models.tiny_model("llama"), tmp_path_factory.mktemp("base") / "tiny.gguf")


def lora(
    path: Path, module: str = Q, a: tuple[int, ...] = (4, 64), b: tuple[int, ...] = (64, 4), **k: Any
) -> Path:
    pairs = {module: (np.zeros(a, np.float32), np.zeros(b, np.float32))}
    return models.write_lora(path / "lora.gguf", k.get("architecture", "llama"), pairs, alpha=4.0)


def test_a_lora_of_the_base_passes(base: Path, tmp_path: Path) -> None:
    check_lora(lora(tmp_path), base)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"architecture": "qwen2"}, "its architecture is 'qwen2', and that of tiny.gguf is 'llama'"),
        ({"module": "blk.7.attn_q.weight"}, "adapts blk.7.attn_q.weight, and tiny.gguf has no such tensor"),
        (
            {"a": (4, 32)},
            f"sides for {Q} have the shapes 4 x 32 and 64 x 4, and the weight in tiny.gguf has 64 x 64",
        ),
        ({"b": (64, 2)}, "have the shapes 4 x 64 and 64 x 2"),
        ({"b": (32, 4)}, "have the shapes 4 x 64 and 32 x 4"),
    ],
)
def test_a_lora_of_another_model(base: Path, tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(BaseMismatchError, match="is a LoRA of another model") as refused:
        check_lora(lora(tmp_path, **options), base)
    assert expected in str(refused.value)


def test_no_lora_at_all(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError, match=r"tiny.gguf is no LoRA: its general.type is .* adapter"):
        check_lora(base, base)
    array = tmp_path / "array.gguf"
    with array.open("wb") as file:
        write(file, "llama", [("general.type", [1, 2], UINT32), ("adapter.type", [1, 2], UINT32)], {})
    with pytest.raises(BaseMismatchError, match=r"no usable GGUF LoRA: its key general.type is array"):
        check_lora(array, base)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF of another kind")
    with pytest.raises(BaseMismatchError, match="is no usable GGUF LoRA"):
        check_lora(damaged, base)
