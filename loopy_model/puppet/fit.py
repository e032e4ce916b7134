"""The training loop of the puppet's small networks.

Fixed step counts, and step k draws its randomness from (seed, k) alone, so an interrupted
run that resumes from its state ends in the same weights as an uninterrupted one.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from ..weights import write_tensors


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; `rate` is the peak of a warmed-up cosine."""

    steps: int
    batch: int
    rate: float
    seed: int = 0
    warmup: int = 100
    report_every: int = 200

    def rate_at(self, step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1, (step + 1) / self.warmup) * max(0.01, decay)


def fit(
    network: nn.Module,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    report: Callable[[], dict[str, float]],
    recipe: Recipe,
    path: Path,
) -> dict[str, float]:
    """Minimise `loss_of`; log to `path`.jsonl, keep the state in `path`.state.pt.

    Returns the last report. Resumes if the state exists.
    """
    optimiser = torch.optim.AdamW(network.parameters(), recipe.rate, weight_decay=1e-3)
    state_path, first = path.with_suffix(".state.pt"), 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    metrics: dict[str, float] = {}
    for step in tqdm(range(first, recipe.steps), path.name, mininterval=10):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_000 + step)
        loss = _update(network, optimiser, loss_of(generator), recipe.rate_at(step))
        done = step + 1
        if done % recipe.report_every == 0 or done == recipe.steps:
            metrics = report()
            append_line(path.with_suffix(".jsonl"), {"step": done, "loss": loss, **metrics})
            state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            save_atomically({**state, "step": done}, state_path)
    return metrics or report()


def _update(network: nn.Module, optimiser: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> float:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def append_line(path: Path, record: dict[str, float]) -> None:
    """One JSON object per line."""
    with path.open("a") as file:
        file.write(json.dumps({k: round(v, 5) for k, v in record.items()}) + "\n")


def save_atomically(state: dict, path: Path) -> None:
    """An interrupted save leaves the previous file whole."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def save_network(network: nn.Module, path: Path) -> None:
    """Weights as float32 safetensors."""
    write_tensors(path, network.state_dict(), {})


def load_network(network: nn.Module, path: Path) -> nn.Module:
    """The same, ready to be used; in the memory format that makes it a quarter faster on a CPU."""
    network.load_state_dict(load_file(path))
    return network.eval().to(memory_format=torch.channels_last)
