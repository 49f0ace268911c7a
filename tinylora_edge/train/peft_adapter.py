"""A basis inside PEFT: an adapter that TRL, accelerate and vLLM treat like any other.

PEFT's own TinyLoRA computes an SVD of every layer when it is created, draws its projections from torch's
generator, and ties neighbours at one ratio. The layers here are PEFT's, with factors and P taken from a
basis instead (`Projection.tied`), under a PEFT type of their own, `TINYLORA_EDGE`. PEFT knows the type once
this module is imported; import it before `PeftModel.from_pretrained` of such an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..basis import Basis
from ..errors import BasisMismatchError, MissingExtraError, TrainError
from ..factors import shape_name
from ..vector import MicroVector
from .adapter import SidePath, factors_for

try:
    from peft import PeftModel, get_peft_model
    from peft.mapping import (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    )
    from peft.tuners.tinylora import Linear as PeftLinear
    from peft.tuners.tinylora import TinyLoraConfig, TinyLoraModel
    from peft.tuners.tuners_utils import check_adapters_to_merge
except ModuleNotFoundError:
    raise MissingExtraError("the PEFT adapter", "peft", "train") from None

PEFT_TYPE = "TINYLORA_EDGE"
"""The type by which PEFT knows these adapters, in `adapter_config.json` too."""


@dataclass
class TinyLoraEdgeConfig(TinyLoraConfig):
    """The configuration of an adapter that carries a basis: `tying` is by the layers' names."""

    tying: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class TinyLoraEdgeLinear(PeftLinear):
    """PEFT's TinyLoRA layer without its SVD; factors follow the base's dtype, v and R stay in float32.

    All adapters of a layer share one basis, and so its factors: TRL makes a second one as reference for KL.
    """

    def _init_svd(self, adapter_name: str, r: int, fan_in_fan_out: bool) -> None:
        self.r[adapter_name] = r
        twin = next(iter(self.tinylora_A), None)
        shapes = (r, self.in_features), (self.out_features, r)
        for factors, shape in zip((self.tinylora_A, self.tinylora_B), shapes, strict=True):
            factors[adapter_name] = factors[twin] if twin else torch.zeros(shape)

    def _init_projection(self, adapter_name: str, u: int, base_seed: int) -> None:
        r, twin = self.r[adapter_name], next(iter(self.tinylora_P), None)
        self.tinylora_P[adapter_name] = self.tinylora_P[twin] if twin else torch.zeros(u, r, r)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's would cast P, and v with it, to the base's dtype
        weight = self.get_base_layer().weight
        device = device or weight.device
        for factors in (self.tinylora_A, self.tinylora_B):
            factors[adapter_name] = factors[adapter_name].to(device, weight.dtype)
        self.tinylora_P[adapter_name] = self.tinylora_P[adapter_name].to(device)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return dW = B R A, float32 (float64 for such a base) [out, in], in the layer's row order."""
        r = self._compute_R(adapter_name)
        a, b = self.tinylora_A[adapter_name], self.tinylora_B[adapter_name]
        return (b.to(r.dtype) @ r) @ a.to(r.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW to the base's weight, which is kept in the host's memory until `unmerge`.

        A trainer that generates with merged weights merges and unmerges at every step; subtracting would
        carry the frozen base away by rounding.
        """
        weight = self.get_base_layer().weight
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.tinylora_A:
                continue
            merged = (weight + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"adapter {name} makes a weight that is not finite: it was not merged here")
            if not self.merged_adapters:
                self._unmerged = weight.data.cpu()
            weight.data = merged
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base its weight back, bit for bit, whatever became of v since."""
        if self.merged_adapters:
            weight = self.get_base_layer().weight
            weight.data = self._unmerged.to(weight.device)
            del self._unmerged
            self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output and, where adapters are active and not merged, their side path."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name not in self.tinylora_A:
                continue
            a, b = self.tinylora_A[name], self.tinylora_B[name]
            # autocast would round R, and with it v, to bfloat16
            with torch.autocast(x.device.type, enabled=False):
                side = SidePath.apply(x.to(a.dtype), self._compute_R(name), a, b)
            result = result + side.to(result.dtype)
        return result


class TinyLoraEdgeModel(TinyLoraModel):
    """PEFT's TinyLoRA tuner, tied by an explicit map and with v in float32."""

    def _create_and_replace(
        self,
        tinylora_config: TinyLoraEdgeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        group = str(tinylora_config.tying[current_key])
        if len({config.digest for config in self.peft_config.values()}) > 1:
            raise BasisMismatchError(f"adapter {adapter_name} is of another basis than the model's first one")
        if adapter_name not in self.tinylora_v:
            rows = {
                str(g): nn.Parameter(torch.zeros(tinylora_config.u, device=target.weight.device))
                for g in range(1 + max(tinylora_config.tying.values()))
            }
            self.tinylora_v[adapter_name] = nn.ParameterDict(rows)
        if isinstance(target, TinyLoraEdgeLinear):
            target.update_layer(adapter_name, self.tinylora_v, group, tinylora_config.r, tinylora_config)
        else:
            layer = TinyLoraEdgeLinear(
                target, self.tinylora_v, group, adapter_name, tinylora_config, layer_idx=0
            )
            self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Do nothing: v is float32 already, and factors in the base's dtype save a copy of every input."""


def peft_model(model: Any, basis: Basis) -> PeftModel:
    """Wrap a transformers model in a PEFT model whose adapter carries a basis; v starts at zero.

    The wrapped model is changed in place and frozen. No SVD runs. The adapter saves and loads with PEFT
    (factors and projections included), merges and unmerges, and takes further adapters of the same basis.

    Raises:
        TrainError: a module of the basis is not in the model, its factors are not those of the layer, or R is
            not square.
    """
    if basis.shape != (basis.rank, basis.rank):
        raise TrainError(
            f"PEFT's layers take a square R, and not {shape_name(basis.shape)}: choose a rank of one number"
        )
    factors = factors_for(model, basis.factors, basis.shape)
    tying, p = basis.projection.tied
    config = TinyLoraEdgeConfig(
        task_type="CAUSAL_LM",
        r=basis.rank,
        u=p.shape[1],
        target_modules=list(factors),
        tying={name: int(group) for name, group in zip(factors, tying, strict=True)},
        digest=basis.digest,
    )
    wrapped = get_peft_model(model, config)
    # Else PEFT asks the Hugging Face hub for that name at every checkpoint, to compare vocabularies.
    config.base_model_name_or_path = ""
    for (name, (a, b)), own in zip(factors.items(), p, strict=True):
        layer = model.get_submodule(name)
        layer.tinylora_A["default"].copy_(a)
        layer.tinylora_B["default"].copy_(b)
        layer.tinylora_P["default"].copy_(torch.from_numpy(own.copy()))
    return wrapped


def vector_of(model: PeftModel, *, adapter_name: str = "default") -> MicroVector:
    """Return v of an adapter as a micro-vector."""
    rows = getattr(model.base_model, "tinylora_v", {})
    if adapter_name not in rows:
        raise TrainError(f"the model has no TinyLoRA adapter {adapter_name!r}: make one with peft_model")
    values = [rows[adapter_name][str(group)].detach() for group in range(len(rows[adapter_name]))]
    digest = model.peft_config[adapter_name].digest
    return MicroVector(torch.cat(values).float().cpu().numpy(), basis=digest)


# `peft.utils.register_peft_method` takes only names of PEFT's own enum, which cannot be extended; these
# three mappings are all that it would fill in.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = TinyLoraEdgeConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = TinyLoraEdgeModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = TinyLoraEdgeModel.prefix
