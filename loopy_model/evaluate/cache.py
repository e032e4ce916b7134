"""What was measured of a video, kept under its digest, so that a second run redoes only what changed."""

import hashlib
import json
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..prepare.records import digest_of, write_json, write_whole
from ..weights import save_tensors

VERSION = "1"  # raise it when a measurement changes


def file_digest(path: Path) -> str:
    """Read once, and again only when the file has changed. Raises ValueError where it cannot be read."""
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}. Leave it out or write it again.") from error


@once
def _digest(path: Path, size: int, modified: int) -> str:
    return digest_of(path)


def key_of(*ingredients: object) -> str:
    """Of everything that a value depends on."""
    return hashlib.sha256(json.dumps([VERSION, *map(str, ingredients)]).encode()).hexdigest()[:24]


class Cache:
    """A folder of files that appear when they are complete; broken ones are made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def values(self, part: str, key: str, make: Callable[[], Any]) -> Any:
        """Something that JSON can hold, e.g. `3f..a2.sync.json`."""
        path = self.folder / f"{key}.{part}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            made = make()
            write_json(path, made)
            return made

    def array(self, part: str, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Landmarks and features: safetensors, since JSON would be ten times larger."""
        path = self.folder / f"{key}.{part}.safetensors"
        try:
            return load_file(path)["array"]
        except (OSError, SafetensorError, KeyError):
            made = np.ascontiguousarray(make())
            write_whole(path, lambda partial: save_tensors(partial, {"array": torch.from_numpy(made)}))
            return made

    def file(self, name: str, key: str, write: Callable[[Path], None]) -> Path:
        """Something that is not looked into, e.g. `3f..a2.played.mp4`."""
        path = self.folder / f"{key}.{name}"
        if not path.is_file():
            write_whole(path, write)
        return path
