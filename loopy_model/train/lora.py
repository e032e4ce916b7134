"""Low-rank adapters (LoRA, Hu et al. 2021) on the spatial layers; everything else is trained in full."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..model import Loopy

NEW_LAYERS = (
    "inter_modules",
    "audio_modules",
    "intra_modules",
    "audio_norm",
    "audio_projection",
    "audio_to_latents",
)
"""What Loopy adds to SD1.5's U-Nets; all other parameters are spatial."""


def is_spatial(name: str) -> bool:
    return not any(part in name.split(".") for part in NEW_LAYERS)


class LowRank(nn.Module):
    """A frozen linear layer and a trained change of rank r: W x + up(down(x)), silent at first."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def add_low_rank(model: Loopy, rank: int) -> None:
    """Puts adapters on every linear layer of the spatial transformers; other spatial layers freeze."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_spatial(name))
    for parent, key, layer in list(_spatial_linears(model)):
        parent.register_module(key, LowRank(layer, rank))


def _spatial_linears(model: Loopy) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for name, parent in model.named_modules():
        if is_spatial(name) and "transformer_blocks" in name.split("."):
            for key, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    yield parent, key, child


def store_frozen_layers(model: Loopy, dtype: torch.dtype) -> None:
    """Frozen layers in the precision that they are computed in: half the memory on one card."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.requires_grad:
            module.to(dtype)


def adapter_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What training changed, under the names of an adapter file (`loopy_model.adapter`)."""
    tensors = {f"full.{name}": tensor for name, tensor in weights.items() if not is_spatial(name)}
    for name, tensor in weights.items():
        for side in ("down", "up"):
            if name.endswith(f".{side}.weight") and name.replace(f".{side}.", ".layer.") in weights:
                tensors[f"low_rank.{name.removesuffix(f'.{side}.weight')}.weight.{side}"] = tensor
    return tensors
