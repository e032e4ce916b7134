"""Adapters: what fine-tuning changed in a model, as a small safetensors file.

Header: `format` = "loopy-adapter", `format_version`, `config` (JSON of the base model's LoopyConfig),
`card` (JSON of ModelCard). Tensors, by the name of the weight they change: `low_rank.<name>.down`
(r, in) and `low_rank.<name>.up` (out, r), whose product is added; `full.<name>`, which replaces.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import LoopyConfig
from .weights import ModelCard

ADAPTER_FORMAT = "loopy-adapter"
ADAPTER_VERSION = 1


class NotAnAdapter(ValueError):
    """The file cannot be used as an adapter of this model; the message says why and what to do."""


def save_adapter(
    path: Path,
    config: LoopyConfig,
    card: ModelCard,
    tensors: dict[str, Tensor],
    dtype: torch.dtype = torch.float16,
) -> None:
    """`tensors` are named as in the file; it appears only when it is complete."""
    metadata = {
        "format": ADAPTER_FORMAT,
        "format_version": str(ADAPTER_VERSION),
        "config": json.dumps(config.to_dict()),
        "card": json.dumps(asdict(card)),
    }
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({k: t.to(dtype).contiguous() for k, t in tensors.items()}, partial, metadata)
        partial.chmod(0o644)  # safetensors writes files that only their owner can read
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def apply_adapter(
    weights: dict[str, Tensor], path: Path, config: LoopyConfig, strength: float = 1.0
) -> dict[str, Tensor]:
    """The model's weights with the adapter at `strength` (0 = none, 1 = as trained), in their own dtype.

    Raises NotAnAdapter when the file is something else or belongs to a model of another shape.
    """
    changes = _read(path, config)
    changed = dict(weights)
    for key, tensor in changes.items():
        kind, _, name = key.partition(".")
        if kind == "low_rank" and name.endswith(".down"):
            name = name.removesuffix(".down")
            up = changes.get(f"low_rank.{name}.up")
            target = _target(weights, name, path)
            difference = None if up is None or up.shape[1] != len(tensor) else up.float() @ tensor.float()
        elif kind == "full":
            target = _target(weights, name, path)
            difference = tensor.float() - target.float() if tensor.shape == target.shape else None
        else:
            continue
        if difference is None or difference.shape != target.shape:
            raise NotAnAdapter(f"{path.name} does not fit its own header ({key}); export the adapter again.")
        changed[name] = (target.float() + strength * difference).to(target.dtype)
    return changed


def _target(weights: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in weights:
        raise NotAnAdapter(f"{path.name} changes {name}, which the model does not have; export it again.")
    return weights[name]


def _read(path: Path, config: LoopyConfig) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise NotAnAdapter(
            f"{path.name} cannot be read as a safetensors file; "
            "it may be incomplete: copy or download it again."
        ) from error
    if metadata.get("format") != ADAPTER_FORMAT:
        raise NotAnAdapter(
            f"{path.name} is not a Loopy adapter; choose a file that "
            "`python -m loopy_model.train --recipe finetune` made."
        )
    if metadata.get("format_version") != str(ADAPTER_VERSION):
        raise NotAnAdapter(
            f"{path.name} has adapter version {metadata.get('format_version')}, this pack reads "
            f"{ADAPTER_VERSION}; update ComfyUI-Loopy."
        )
    if LoopyConfig.from_dict(json.loads(metadata["config"])) != config:
        raise NotAnAdapter(
            f"{path.name} was made for a model of other sizes than the one it is applied to; "
            "choose the base model it was trained on."
        )
    return tensors
