"""Where a video is saved: the prefix as the host's own save nodes read it, and the next free name."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import folder_paths

PLACE = re.compile(r"%([^%]+)%")
DATE = re.compile("yyyy|yy|MM?|dd?|hh?|mm?|ss?")
LONGEST = 80  # bytes of one inserted value: file systems allow 255 in all
NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def free_path(prefix: str, width: int, height: int, prompt: dict[str, Any] | None) -> tuple[Path, str]:
    """The next free name below the output folder, and its subfolder; the host refuses any other place."""
    root = Path(folder_paths.get_output_directory()).resolve()
    wanted = os.path.normpath(
        expanded(prefix, prompt or {})
    )  # with a slash at its end the host would count from 1
    if root not in (root / wanted).resolve().parents:
        raise ValueError(
            f"filename_prefix {prefix!r} leads out of the output folder; use a plain name or subfolder/name."
        )
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(wanted, str(root), width, height)
    while (path := Path(folder) / f"{name}_{counter:05}_.mp4").exists():
        counter += 1
    return path, subfolder


def expanded(prefix: str, prompt: dict[str, Any]) -> str:
    """`%date:yyyy-MM-dd%` and `%Node.widget%` filled in, which the frontend does for stock nodes alone; what
    is neither stays (the host knows `%year%` and the like)."""

    def fill(place: re.Match) -> str:
        kind, _, form = place[1].partition(":")
        if kind == "date" and form:
            return _date(form)  # whose slashes make folders
        value = _value(place[1], prompt)
        return place[0] if value is None else _short(NOT_IN_NAMES.sub("_", str(value)))

    return PLACE.sub(fill, prefix)


def _short(value: str) -> str:
    """A prompt is a value too."""
    return value.encode()[:LONGEST].decode(errors="ignore").strip()


def _date(form: str) -> str:
    now = datetime.now()
    values = dict(y=now.year, M=now.month, d=now.day, h=now.hour, m=now.minute, s=now.second)

    def digits(part: re.Match) -> str:
        return str(values[part[0][0]]).zfill(len(part[0]))[-max(2, len(part[0])) :]

    return DATE.sub(digits, form)


def _value(place: str, prompt: dict[str, Any]) -> Any:
    """Of a widget by the title or class of its node; None where there is no such widget."""
    title, _, widget = place.rpartition(".")
    for node in prompt.values():
        value = node.get("inputs", {}).get(widget)
        if title in (node.get("_meta", {}).get("title"), node.get("class_type")) and not isinstance(
            value, list
        ):
            return value
    return None
