"""Adapters: what fine-tuning changed in a model, as a small safetensors file.

Header: `format` = "loopy-adapter", `format_version`, `config` (JSON of the base model's LoopyConfig),
`card` (JSON of ModelCard), `student_steps` (a number; 0 unless it was distilled).
Tensors, by the name of the weight they change: `low_rank.<name>.down`
(r, in) and `low_rank.<name>.up` (out, r), whose product is added; `full.<name>`, which replaces.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .config import LoopyConfig
from .weights import ADAPTER_FORMAT, ModelCard, open_safetensors, read_header, write_tensors

ADAPTER_VERSION = 1
PREFIX = "loopy."  # of the model's own tensors in a checkpoint


class NotAnAdapter(ValueError):
    """The file cannot be used as an adapter of this model; the message says why and what to do."""


def save_adapter(
    path: Path,
    config: LoopyConfig,
    card: ModelCard,
    tensors: dict[str, Tensor],
    dtype: torch.dtype = torch.float16,
    student_steps: int = 0,
) -> None:
    """`tensors` are named as in the file; it appears only when it is complete."""
    metadata = {
        "format": ADAPTER_FORMAT,
        "format_version": str(ADAPTER_VERSION),
        "config": json.dumps(config.to_dict()),
        "card": json.dumps(asdict(card)),
        "student_steps": str(student_steps),
    }
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in tensors.items()}, metadata)


def merge(base: Path, adapter: Path, result: Path, strength: float = 1.0) -> None:
    """A checkpoint with the adapter in it, to share or to train on from; encoder and VAE stay as they are.

    Raises NotALoopyModel and NotAnAdapter.
    """
    header, tensors = read_header(base), load_file(base)
    own = {k.removeprefix(PREFIX): t for k, t in tensors.items() if k.startswith(PREFIX)}
    changed, own_card = apply_adapter(own, adapter, header.config, strength), read_card(adapter)
    card = replace(
        header.card,
        name=f"{header.card.name} with {adapter.stem}",
        trained_on=own_card.trained_on,
        limits=f"{own_card.limits} {header.card.limits}",
    )
    config = config_with(adapter, header.config, strength)
    tensors |= {PREFIX + name: tensor for name, tensor in changed.items()}
    write_tensors(result, tensors, replace(header, config=config, card=card).to_metadata())


def read_card(adapter: Path) -> ModelCard:
    """What the adapter is. Raises NotAnAdapter."""
    try:
        return ModelCard(**json.loads(_metadata(adapter)["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(adapter) from error


def config_with(adapter: Path, config: LoopyConfig, strength: float = 1.0) -> LoopyConfig:
    """That of the model with the adapter: a student's own, where it is applied as it was trained."""
    try:
        steps = int(_metadata(adapter).get("student_steps", 0))
    except ValueError as error:
        raise _damaged(adapter) from error
    return config.of_student(steps) if steps and strength == 1 else config


def apply_adapter(
    weights: dict[str, Tensor], path: Path, config: LoopyConfig, strength: float = 1.0
) -> dict[str, Tensor]:
    """The model's weights with the adapter at `strength` (0 = none, 1 = as trained), in their own dtype.

    Raises NotAnAdapter when the file is something else or belongs to a model of another shape.
    """
    changed = dict(weights)
    for name, parts in _by_weight(_read(path, config), path).items():
        if name not in weights:
            raise NotAnAdapter(f"{path.name} changes {name}, which the model does not have; export it again.")
        before = weights[name].float()
        trained = _trained(before, parts)
        if trained is None:
            raise _does_not_fit(path, name)
        # lerp gives its ends exactly: 0 is the model bit for bit, 1 is what training made
        changed[name] = torch.lerp(before, trained, strength).to(weights[name].dtype)
    return changed


def _trained(before: Tensor, parts: dict[str, Tensor]) -> Tensor | None:
    """A weight as fine-tuning left it; None when the parts do not fit it."""
    if parts.keys() == {"full"} and parts["full"].shape == before.shape:
        return parts["full"].float()
    if parts.keys() == {"down", "up"}:
        down, up = parts["down"], parts["up"]
        if (
            down.ndim == up.ndim == 2
            and len(down) == up.shape[1]
            and (len(up), down.shape[1]) == before.shape
        ):
            return before + up.float() @ down.float()
    return None


def _by_weight(tensors: dict[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by the weight that they change: {"full": ...} or {"down": ..., "up": ...}."""
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "low_rank":
            name, _, kind = name.rpartition(".")
        if kind not in ("full", "down", "up"):
            raise _does_not_fit(path, key)
        weights.setdefault(name, {})[kind] = tensor
    return weights


def _metadata(path: Path) -> dict[str, str]:
    with open_safetensors(path, NotAnAdapter) as file:
        return file.metadata() or {}


def _damaged(path: Path) -> NotAnAdapter:
    return NotAnAdapter(f"{path.name} has a damaged header; export the adapter again.")


def _does_not_fit(path: Path, what: str) -> NotAnAdapter:
    return NotAnAdapter(f"{path.name} does not fit its own header ({what}); export the adapter again.")


def _read(path: Path, config: LoopyConfig) -> dict[str, Tensor]:
    """The tensors, once the header has said that they are meant for such a model."""
    with open_safetensors(path, NotAnAdapter) as file:
        _check_header(file.metadata() or {}, path, config)
        return {key: file.get_tensor(key) for key in file.keys()}


def _check_header(metadata: dict[str, str], path: Path, config: LoopyConfig) -> None:
    if metadata.get("format") != ADAPTER_FORMAT:
        raise NotAnAdapter(
            f"{path.name} is not a Loopy adapter; choose a file that "
            "`python -m loopy_model.train` made with recipe finetune or distill."
        )
    if metadata.get("format_version") != str(ADAPTER_VERSION):
        raise NotAnAdapter(
            f"{path.name} has adapter version {metadata.get('format_version')}, this pack reads "
            f"{ADAPTER_VERSION}; update ComfyUI-Loopy."
        )
    try:
        trained_on = LoopyConfig.from_dict(json.loads(metadata["config"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if trained_on != config:
        raise NotAnAdapter(
            f"{path.name} was made for a model of other sizes than the one it is applied to; "
            "choose the base model it was trained on."
        )
