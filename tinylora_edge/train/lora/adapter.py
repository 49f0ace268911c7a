"""A plain LoRA inside a transformers model, by PEFT: all of A and B learn.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ...axes import Whitening
from ...basis import Basis
from ...errors import MissingExtraError
from ...modules import inverse
from ...vector import MicroVector
from ..layers import hf_names, order_for
from .shape import LoraShape

_NAME = "lora"


class LoraAdapter:
    """A LoRA on the modules of a basis, attached to a transformers model, which it changes until `detach`.

    Its numbers take the place of v everywhere in the loop: a vector [1, `LoraShape.size`]. A starts as PEFT
    starts it, B at 0, so that the start is the base. Both are float32 whatever the base is, and at scale 1.

    Args:
        model: a `transformers` causal language model, its weights in any float dtype; it is frozen.
        basis: of the model. Its modules are adapted; its factors only show that it is this model's.
        rank: of the LoRA.
        seed: of the first A.
        names: module -> name of the `nn.Linear` in the model; by default `hf_names`.

    Attributes:
        shape: of the numbers.
        trained: A and B of each module in turn, in the layer's order of rows.
        start: the numbers before the first step, float32 [1, size].
        whitening: none: Adam steps on the numbers themselves.

    Raises:
        MissingExtraError: PEFT is not installed.
        TrainError: as for `Adapter`.
    """

    def __init__(
        self,
        model: nn.Module,
        basis: Basis,
        rank: int,
        *,
        seed: int = 0,
        names: dict[str, str] | None = None,
    ) -> None:
        try:
            from peft import LoraConfig, LoraModel
        except ModuleNotFoundError:
            raise MissingExtraError("training a LoRA", "peft", "train") from None
        names = names or hf_names(model, basis)
        self.shape = LoraShape.on(basis, rank)
        self._orders = [order_for(model, basis, module, names[module]) for module in basis.modules]
        self._model = model.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(names.values()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._lora: Any = LoraModel(model, config, _NAME)
        layers: list[Any] = [model.get_submodule(names[module]) for module in basis.modules]
        self.trained: list[Tensor] = [
            side[_NAME].float().weight for layer in layers for side in (layer.lora_A, layer.lora_B)
        ]
        self.whitening = Whitening()
        self.start: NDArray[np.float32] = self._row(self.trained).numpy()

    def set(self, v: MicroVector | ArrayLike) -> None:
        """Set A and B from a vector of all numbers."""
        values: Any = getattr(v, "values", v)
        pairs = self.shape.pairs(np.asarray(values, np.float32)).values()
        with torch.no_grad():
            for i, (a, b) in enumerate(pairs):
                self.trained[2 * i].copy_(torch.from_numpy(a.copy()))
                self.trained[2 * i + 1].copy_(torch.from_numpy(b[inverse(self._orders[i])]))

    def vector(self, dtype: str = "fp32", sequence: int = 0) -> MicroVector:
        """Return A and B as a vector of all numbers."""
        return MicroVector(self._row(self.trained).numpy(), dtype, sequence)

    def joined(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the gradients by `trained` as one by the numbers, float32 [1, size]."""
        return self._row(gradients)

    def detach(self) -> None:
        """Give the model back as it was (frozen)."""
        self._lora.unload()
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config

    def __enter__(self) -> LoraAdapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _row(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = []
        for i, order in enumerate(self._orders):
            a, b = tensors[2 * i].detach(), tensors[2 * i + 1].detach()
            parts += [a.flatten(), b[torch.from_numpy(order)].flatten()]
        return torch.cat(parts).cpu()[None]
