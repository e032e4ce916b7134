"""Weights with a voice: tests of numbers need nets in which no layer is silent."""

import math

import torch
from torch import Tensor, nn

from loopy_model.config import LoopyConfig
from loopy_model.model import Loopy


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with random weights everywhere, also where a fresh one holds zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("positions"):  # sinusoids, alive from the start
                parameter.copy_(spread(name, torch.randn(parameter.shape, generator=generator)))
    return net.eval()


def spread(name: str, unit: Tensor) -> Tensor:
    """Numbers of spread 1 as those of a trained weight of that name."""
    if unit.ndim == 1:  # biases around 0, the weights of norms around 1
        return 0.1 * unit + float(name.endswith("weight"))
    if name.endswith("embeddings"):
        return unit
    return unit / math.sqrt(unit[0].numel())


def borrowed(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict for a full-width net on the meta device: every weight is another slice of one
    random buffer, so two billion parameters cost 120 MB and still differ from key to key."""
    state = net.state_dict()
    largest = max(tensor.numel() for tensor in state.values())
    buffer = torch.randn(largest + 64 * len(state), generator=torch.Generator().manual_seed(seed))
    buffer *= 0.02
    return {
        key: _borrow(key, tensor, buffer[64 * i : 64 * i + tensor.numel()].view(tensor.shape))
        for i, (key, tensor) in enumerate(state.items())
    }


def _borrow(key: str, like: Tensor, values: Tensor) -> Tensor:
    return values + 1 if like.ndim == 1 and key.endswith("weight") else values


def full_width(net: nn.Module) -> nn.Module:
    """A net built on the meta device, made real with borrowed weights."""
    net.load_state_dict(borrowed(net), assign=True)
    return net.eval().requires_grad_(False)


def small_model(config: LoopyConfig, seed: int = 0) -> Loopy:
    return lively(Loopy(config), seed).requires_grad_(False)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The textbook, one head after the other: (N, C) asks (K, C)."""
    width = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        out.append(torch.softmax(scores, -1) @ v[:, part])
    return torch.cat(out, -1)
