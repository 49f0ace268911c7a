"""The source of an export's factors: the weights of a model, and the GGUF that is deployed, if one is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BaseMismatchError, BasisError, ExportError
from ..factorization import AGREEMENT, RowSource, distance, fitting_order
from ..formats.side_tensors import fingerprint
from ..limits import BLOCKS
from ..modules import Heads, listed_order, parse, row_orders, select
from .weights.gguf import GGUFWeights, warn_of
from .weights.hf import HFConfig, HFWeights


class Source:
    """The weights that an export makes factors of, opened, but not read. Arguments and errors: see `Export`.

    Attributes:
        base: the GGUF that is deployed, or None where a directory serves another engine alone.
        architecture: its `general.architecture`, or the one that it would have.
        modules: names of all modules that can be adapted.
        heads: numbers of attention heads, where they are known.
    """

    def __init__(self, model: Path, base: Path | None, *, needs_gguf: bool) -> None:
        if not model.exists():
            raise ExportError(
                f"{model} does not exist: pass a .gguf file or a Hugging Face directory; in Python, "
                "exporters.resolve turns the name of a model into one"
            )
        if model.is_dir() and base is None and needs_gguf:
            raise ExportError(
                f"{model} is a directory of weights: name the GGUF that is deployed with --base FILE"
            )
        self.model = model
        self.base = base if base is not None or model.is_dir() else model
        self._deployed = None if self.base is None else GGUFWeights(self.base)
        self._weights: GGUFWeights | HFWeights
        if self._deployed is None:
            config = HFConfig(model)
            self.architecture, self.heads = config.architecture, config.heads
            self._weights = HFWeights(model, self.architecture, config.blocks)
            self.modules = self._weights.modules
            return
        file = self._deployed.file
        self.architecture, self.modules = file.architecture, self._deployed.modules
        queries = file.get(f"{file.architecture}.attention.head_count")
        keys = file.get(f"{file.architecture}.attention.head_count_kv", queries)
        self.heads = Heads(*(n if isinstance(n, int) and n > 0 else None for n in (queries, keys)))
        self._weights = self._deployed
        if model.is_dir():
            blocks = 1 + max(parse(module)[0] for module in self.modules)
            if blocks > BLOCKS:
                raise ExportError(
                    f"{self.base} has tensors of block {blocks - 1:,}: at most {BLOCKS:,} blocks are read. "
                    "Download or convert it again"
                )
            self._weights = HFWeights(model, self.architecture, blocks)
        elif model.resolve() != self.base.resolve():  # type: ignore[union-attr]
            self._weights = GGUFWeights(model)

    @property
    def kind(self) -> str:
        """`gguf` or `hf`: where the weights come from."""
        return self._weights.kind

    @property
    def quantized(self) -> bool:
        """Whether the model is a GGUF with quantized weights."""
        return isinstance(self._weights, GGUFWeights) and self._weights.quantized

    def warn(self) -> None:
        """Warn of what llama.cpp would make of the deployed GGUF, if there is one."""
        if self._deployed is not None:
            warn_of(self.architecture, self._deployed.left_out)

    def nbytes(self, module: str) -> int:
        """Bytes of a module's weight as it is stored where it is deployed."""
        return (self._deployed or self._weights).nbytes(module)

    def fingerprints(self, modules: Sequence[str]) -> tuple[str, ...]:
        """The fingerprint of the GGUF that is deployed, if there is one."""
        return () if self._deployed is None else (fingerprint(self._deployed.file, modules),)

    def matrices(self, module: str) -> Sequence[RowSource]:
        """Return the weight that a module's factors are made of: one matrix [out, in], or one an expert."""
        return self._weights.matrices(module)

    def stacked(self, module: str) -> bool:
        """Whether the factors of a module have an axis for experts."""
        return self._deployed is not None and len(self._deployed.file.tensors[module].shape) == 3

    def plan(self, targets: Sequence[str], rank: int) -> list[str]:
        """Return the modules that get factors, in canonical order, once every weight is known to fit."""
        modules = select(self.modules, targets)
        for module in modules:
            matrices = self.matrices(module)
            n_out, n_in = matrices[0].shape
            if self._deployed is not None:
                expected = self._deployed.file.tensors[module].shape
                stacked = len(expected) == 3 or len(matrices) > 1
                found = (len(matrices), n_out, n_in) if stacked else (n_out, n_in)
                if expected != found:
                    raise BaseMismatchError(
                        f"{module} is {'x'.join(map(str, expected))} in {self.base}, but "
                        f"{'x'.join(map(str, found))} in {self.model}: it is another model, or not complete"
                    )
            if rank > min(n_out, n_in):
                raise BasisError(
                    f"{module}: rank {rank} does not fit a weight of shape {n_out} x {n_in}: "
                    f"choose 1 to {min(n_out, n_in)}"
                )
        return modules

    def align(
        self, module: str, a: NDArray[np.float32], b: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float | None]:
        """Return B with its rows in the order of the GGUF, and the distance to the weight that is deployed.

        convert_hf_to_gguf reorders the rows of q and k on Llama-family models for its RoPE; which
        models those are is seen from the weights themselves, not kept in a list. Where no GGUF is
        deployed a list has to do. No distance is returned then, nor where the factors are of that GGUF.
        """
        if self._weights is self._deployed:
            return b, None
        kind, rows = parse(module)[1], b.shape[-2]
        if self._deployed is None:
            return b[..., listed_order(self.architecture, kind, rows, self.heads), :], None
        deployed = self._deployed.matrices(module)
        orders = row_orders(kind, rows, self.heads)
        order, gap = fitting_order(orders, lambda order: distance(a, b[..., order, :], deployed))
        if order is None:
            raise BaseMismatchError(
                f"{module} in {self.base} is {gap:.2g} away from the factors of the weights (at most "
                f"{AGREEMENT} is accepted): it was made from another model, or with an unknown order of rows"
            )
        return b[..., order, :], gap
