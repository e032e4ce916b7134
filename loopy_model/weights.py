"""Checkpoints: one safetensors file with a versioned header, loaded strictly.

Header (all values are strings): `format` = "loopy", `format_version`, `config` (JSON of
LoopyConfig), `card` (JSON of ModelCard), and, when the file carries them, `speech_encoder` and
`autoencoder` (JSON of their sizes). Tensors are stored below the prefixes `loopy.`,
`speech_encoder.` and `autoencoder.`.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .autoencoder import AutoencoderConfig
from .config import LoopyConfig
from .speech_encoder import refuse_other_fields

FORMAT = "loopy"
FORMAT_VERSION = 1
ADAPTER_FORMAT = "loopy-adapter"  # that of the other files that training makes, see adapter.py
PARTS = ("loopy", "speech_encoder", "autoencoder")


@dataclass(frozen=True)
class ModelCard:
    """What a person must know before using a checkpoint."""

    name: str
    trained_on: str
    limits: str
    licence: str


@dataclass(frozen=True)
class Header:
    config: LoopyConfig
    card: ModelCard
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # sizes of the other networks

    def to_metadata(self) -> dict[str, str]:
        fixed = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
        own = {"config": json.dumps(self.config.to_dict()), "card": json.dumps(asdict(self.card))}
        return fixed | own | {name: json.dumps(sizes) for name, sizes in self.parts.items()}


class NotALoopyModel(ValueError):
    """The file cannot be used as a Loopy checkpoint; the message says why and what to do."""


def open_safetensors(path: Path, refusal: type[ValueError]) -> safe_open:
    """Raises `refusal` with one sentence."""
    if path.is_dir():
        raise refusal(f"{path.name} is a folder; choose a safetensors file in it.")
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError as error:
        raise refusal(f"there is no file {path}; check the path.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise refusal(
            f"{path.name} cannot be read as a safetensors file; "
            "it may be incomplete: copy or download it again."
        ) from error


def read_header(path: Path) -> Header:
    """Reads the header alone. Raises NotALoopyModel with one sentence."""
    with open_safetensors(path, NotALoopyModel) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") == ADAPTER_FORMAT:
        raise NotALoopyModel(
            f"{path.name} is an adapter, not a whole model; choose the model that it was made from, "
            "and this file as its adapter (in ComfyUI from models/loras)."
        )
    if metadata.get("format") != FORMAT:
        raise NotALoopyModel(
            f"{path.name} is a safetensors file, but not a Loopy model; choose a file "
            "made by `python -m loopy_model.train`, such as the bundled loopy-puppet.safetensors."
        )
    if not metadata.get("format_version", "").isdecimal() or int(metadata["format_version"]) > FORMAT_VERSION:
        raise NotALoopyModel(
            f"{path.name} has format version {metadata.get('format_version')}, this pack reads "
            f"up to {FORMAT_VERSION}; update ComfyUI-Loopy."
        )
    try:
        parts = {name: json.loads(metadata[name]) for name in PARTS[1:] if name in metadata}
        if "speech_encoder" in parts:
            refuse_other_fields(parts["speech_encoder"])
        if "autoencoder" in parts:
            AutoencoderConfig(**parts["autoencoder"]["sizes"])
        config = LoopyConfig.from_dict(json.loads(metadata["config"]))
        return Header(config, ModelCard(**json.loads(metadata["card"])), parts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotALoopyModel(f"{path.name} has a damaged Loopy header; export the model again.") from error


def split_parts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """One flat file -> a state dict per part, without the prefixes."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path, assign: bool = False) -> None:
    """Every key must be there with its shape. Raises NotALoopyModel naming the first that is not."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or wrong:
        first = (missing + unexpected + wrong)[0]
        raise NotALoopyModel(
            f"{path.name} does not fit its own header: {len(missing)} weights missing, "
            f"{len(unexpected)} unexpected, {len(wrong)} of another size (first: {first}); "
            "export the model again."
        )
    module.load_state_dict(state, assign=assign)


def save_checkpoint(
    path: Path, header: Header, parts: dict[str, nn.Module], dtype: torch.dtype = torch.float16
) -> None:
    """Writes the parts (keys of PARTS) in `dtype`."""
    tensors = {
        f"{name}.{key}": tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, module in parts.items()
        for key, tensor in module.state_dict().items()
    }
    write_tensors(path, tensors, header.to_metadata())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """One safetensors file; it appears under `path` only when it is complete. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_tensors(partial, tensors, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that others can read too. Raises OSError where there is no room or no right to."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # of the disk, but no OSError
        raise OSError(f"cannot write {path.name}: {error}") from error
    path.chmod(0o644)  # safetensors writes files that only their owner can read


def content_digest(path: Path) -> str:
    """Of header and tensors in the order of their names: safetensors puts the header of every file it
    writes in another order, so equal checkpoints are different files."""
    digest = hashlib.sha256()
    with safe_open(str(path), framework="pt") as file:
        digest.update(json.dumps(file.metadata() or {}, sort_keys=True).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """All parts of a checkpoint, on the CPU, as stored."""
    from safetensors.torch import load_file

    return split_parts(load_file(path))
