"""What a run must keep to go on exactly: weights, their average, optimiser, place; and its safe file."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

# Whole tensors on the CPU under plain names, however many processes hold the parts. Frozen weights
# come from the base model again.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


class Average:
    """Exponential moving average of the trained weights; its memory grows with the run up to `decay`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = module, decay, 0
        self.values: list[Tensor] = []
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begins again at the present weights."""
        self.count, self.values = 0, [own.clone() for own in self._own()]

    @torch.no_grad()
    def update(self) -> None:
        keep = min(self.decay, self.count / (self.count + 20))
        torch._foreach_lerp_(self.values, self._own(), 1 - keep)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        present = [own.clone() for own in self._own()]
        self._set(self.values)
        try:
            yield
        finally:
            self._set(present)

    def adopt(self) -> None:
        """The module goes on from the averaged weights."""
        self._set(self.values)
        self.restart()

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for own, value in zip(self._own(), values):
            own.copy_(value)

    def _own(self) -> list[Tensor]:
        """The trained weights, or this process's shard of each."""
        if hasattr(self.module, "reshard"):
            self.module.reshard()  # after a forward pass alone the shards are still put together
        trained = (p.detach() for p in self.module.parameters() if p.requires_grad)
        return [p.to_local() if hasattr(p, "to_local") else p for p in trained]


def snapshot(module: nn.Module, average: Average, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """The three as whole tensors. Every process must call this; with shards only the first one gets them."""
    state = {"model": get_model_state_dict(module, options=WHOLE), "average_count": average.count}
    with average.applied():
        # The state dict may share the weights' memory, and these go back in a moment.
        state["average"] = {k: t.clone() for k, t in get_model_state_dict(module, options=WHOLE).items()}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(module, optimizer, options=WHOLE)
    return state


def restore(
    state: dict[str, Any], module: nn.Module, average: Average, optimizer: torch.optim.Optimizer | None
) -> None:
    """Inverse of `snapshot`."""
    set_model_state_dict(module, state["average"], options=WHOLE)
    average.restart()
    average.count = state["average_count"]
    set_model_state_dict(module, state["model"], options=WHOLE)
    if optimizer is not None and "optimizer" in state:
        set_optimizer_state_dict(module, optimizer, state["optimizer"], options=WHOLE)
        for own in optimizer.state.values():  # on a CPU these are the state's tensors themselves
            own.update({name: value.clone() for name, value in own.items() if isinstance(value, Tensor)})


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A kill at any moment leaves the last good file under `path`."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_state(path: Path) -> dict[str, Any] | None:
    """The state in a file, mapped into memory: several processes of one machine have it once. None: no file."""
    if not path.is_file():
        return None
    can_map = os.name != "nt"  # Windows does not replace a file that is mapped
    return torch.load(path, weights_only=True, map_location="cpu", mmap=can_map)


def fingerprint(weights: dict[str, Tensor]) -> str:
    """Tells models apart by some thousand values of every weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.flatten()[:: max(1, tensor.numel() // 4096)]
        digest.update(name.encode() + values.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """All weights of the model inside `module`, gathered on the CPU. Every process must call this."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {key.removeprefix("model."): t for key, t in get_model_state_dict(module, options=options).items()}
