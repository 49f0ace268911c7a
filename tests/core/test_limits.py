"""What declares much is refused before it is paid for. GGUF files: tests/formats/test_gguf_container.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import support

from tinylora_edge import BasisError, limits
from tinylora_edge.errors import ExportError
from tinylora_edge.exporters.weights.hf import HFConfig
from tinylora_edge.modules import KINDS
from tinylora_edge.projection import Projection

MEMORY = 64 << 20  # bytes that a refusal may take beside what was there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 257}, "rank 257 and 257 outputs.* 256"),
        ({"rank": 205, "blocks": 4}, "at most 500,000 entries of R, not 504,300"),
        (
            {"modules": tuple(f"blk.{i}.attn_q.weight" for i in range(16_385))},
            "at most 16,384 modules.*not 16,385",
        ),
        ({"modules": ("blk.0." + "x" * 1100,)}, "names of 1,024 bytes, not .* of 1,106"),
    ],
)
def test_factors(changes: dict[str, Any], message: str) -> None:
    with support.memory_limit(MEMORY), pytest.raises(BasisError, match=message):
        support.random_factors(**changes)


def test_the_largest_dense_model_has_vectors_of_64_x_8() -> None:
    modules = [f"blk.{block}.{kind}.weight" for block in range(126) for kind in KINDS[:7]]  # of 405B
    size = Projection.entries(modules, (64, 8)).size
    assert size == 451_584
    assert 4 * size + 100 <= limits.VECTOR_FILE_BYTES  # in float32, signed


def test_a_configuration_of_many_blocks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000}')
    with support.memory_limit(MEMORY), pytest.raises(ExportError, match="1000000 layers"):
        HFConfig(tmp_path)
