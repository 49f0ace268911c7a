"""MXFP4 experts as gpt-oss publishes them in safetensors.

Values are 4-bit floats (E2M1), 32 of which share a scale 2^(s - 127), NaN for s = 255: OCP Microscaling
Formats 1.0, section 5. `<name>_blocks` is uint8 [experts, out, in / 32, 16], of each byte the low half first;
`<name>_scales` is uint8 [experts, out, in / 32]. ggml keeps the same values in another order inside a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import UnsupportedModelError
from ...factorization import RowSource
from .safetensors import Half, StoredTensor

_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=1)
"""The two values of each byte: float32 [256, 2]."""


class Mxfp4:
    """Stacked experts in MXFP4: the tensors of their blocks and of their scales."""

    def __init__(self, blocks: StoredTensor, scales: StoredTensor) -> None:
        self._blocks, self._scales = blocks, scales
        self.nbytes = blocks.nbytes + scales.nbytes

    def matrices(self, module: str, half: Half) -> list[RowSource]:
        """Return the experts' matrices [out, in], or the rows of gate or of up.

        Raises:
            UnsupportedModelError: the tensors are laid out in another way.
        """
        blocks, scales = self._blocks.codes(module), self._scales.codes(module)
        if blocks.ndim != 4 or blocks.shape != (*scales.shape, 16):
            raise UnsupportedModelError(
                f"{module} is stored as blocks of shape {blocks.shape} with scales of shape {scales.shape}: "
                "expected MXFP4 experts, [experts, out, in / 32, 16]; export from the GGUF"
            )
        rows = half.of(blocks.shape[1])
        return [_Mxfp4Rows(b[rows], s[rows]) for b, s in zip(blocks, scales, strict=True)]


class _Mxfp4Rows:
    """A `RowSource` over one expert."""

    dear = True

    def __init__(self, blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> None:
        self._blocks, self._scales = blocks, scales
        self.shape = (blocks.shape[0], blocks.shape[1] * 32)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 as float32 [stop - start, in]."""
        values = _PAIRS[self._blocks[start:stop]]  # [rows, in / 32, 16, 2]
        codes = self._scales[start:stop]
        scales = np.where(codes == 255, np.nan, np.ldexp(np.float32(1), codes.astype(np.int32) - 127))
        scaled = values * scales[..., None, None]
        return np.ascontiguousarray(scaled.reshape(len(values), -1), np.float32)
