"""Weight files -> named tensors.

Nothing in a file is executed: pickles are opened with `weights_only`, by a PyTorch that keeps to it. The tensors are
views of the mapped file, so their numbers are read when they are used and a donor costs next to no memory.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SAFE, PICKLED = (".safetensors", ".sft"), (".ckpt", ".pt", ".pth", ".bin")
SAFE_PICKLES = (2, 6)  # before this version of PyTorch a file could run code all the same (CVE-2025-32434)
WRAPPERS = ("state_dict", "module")  # under which trainers put the weights
DIFFUSERS = "diffusion_pytorch_model"  # of such files one folder may hold several: whole, fp16, pickled
INDEX = ".index.json"
NOT_DOWNLOADED = {  # first bytes, in small letters -> what a download left in the place of the weights
    b"version https://git-lfs": "a pointer of Git LFS",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}


class NotADonor(ValueError):
    """The files cannot be imported; the message says why and what to do, in one sentence."""


@dataclass(frozen=True)
class WeightFile:
    name: str  # for messages
    tensors: dict[str, Tensor]
    found: bool = False  # in a folder, not named by the user
    trouble: str = ""  # why one that was found could not be opened


def read(path: Path) -> list[WeightFile]:
    """A file, or every weight file of a folder and of its folders."""
    if not path.exists():
        raise NotADonor(f"there is no file {path}; check the path.")
    if path.is_file():
        return [WeightFile(path.name, _load(path))]
    folders = [path, *sorted(inner for inner in path.rglob("*") if inner.is_dir())]
    files = [file for folder in folders for file in _folder(folder, path)]
    if not files:
        raise NotADonor(f"{path.name} is a folder without weight files; give the files or their folder.")
    return files


def _folder(folder: Path, root: Path) -> Iterator[WeightFile]:
    files = sorted(file for file in folder.iterdir() if file.suffix in (*SAFE, *PICKLED))
    if index := min(folder.glob(f"*{INDEX}"), default=None):  # "....index.json" before "....index.fp16.json"
        yield _found(folder, root, *_shards(index))
        files = [file for file in files if not file.name.startswith(index.name.split(".")[0])]
    copies = [file for file in files if file.name.startswith(DIFFUSERS)]
    if copies:
        yield _found(folder, root, min(copies, key=_preference))
    for file in files:
        if file not in copies:
            yield _stranger(file, root)


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(index.parent / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotADonor(f"{index.name} cannot be read; copy or download it again.") from error


def _preference(file: Path) -> tuple[bool, int]:
    """Of copies of one net: safetensors first, then the one without a variant in its name."""
    return file.suffix in PICKLED, len(file.name)


def _found(folder: Path, root: Path, *files: Path) -> WeightFile:
    tensors = {key: tensor for file in files for key, tensor in _load(file).items()}
    return WeightFile(str(folder.relative_to(root.parent)), tensors, found=True)


def _stranger(file: Path, root: Path) -> WeightFile:
    """A file of unknown use; one that cannot be opened does no harm unless something is missing."""
    name = str(file.relative_to(root.parent))
    try:
        return WeightFile(name, _load(file), found=True)
    except NotADonor as error:
        return WeightFile(name, {}, found=True, trouble=str(error))


def _load(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (*SAFE, *PICKLED):
        raise NotADonor(
            f"{path.name} is no kind of weight file that is known here; give one of "
            f"{', '.join((*SAFE, *PICKLED))}."
        )
    try:
        _refuse_not_downloaded(path)
        content = load_file(path) if path.suffix in SAFE else _unpickle(path)
    except FileNotFoundError as error:
        raise NotADonor(f"{path.name} is missing beside its index; download it too.") from error
    except pickle.UnpicklingError as error:
        raise NotADonor(
            f"{path.name} holds more than weights and is not opened, because such a file can run code; "
            "look for a .safetensors of the same model."
        ) from error
    except NotADonor:
        raise
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise NotADonor(
            f"{path.name} cannot be read; it may be incomplete: copy or download it again."
        ) from error
    tensors = _unwrap(content)
    if not tensors:
        raise NotADonor(f"{path.name} holds no weights; give another file.")
    return tensors


def _refuse_not_downloaded(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(max(map(len, NOT_DOWNLOADED))).lower()
    for known, what in NOT_DOWNLOADED.items():
        if start.startswith(known):
            raise NotADonor(f"{path.name} is {what} instead of the weights; download the file itself.")


def _unpickle(path: Path) -> object:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_PICKLES:
        raise NotADonor(
            f"{path.name} is not opened by PyTorch {torch.__version__}, in which such a file can run code; "
            "update PyTorch to 2.6 or newer, or give a .safetensors of the same model."
        )
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _unwrap(content: object) -> dict[str, Tensor]:
    """The weights alone, without a trainer's wrapper, counters, and DataParallel's prefix."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
