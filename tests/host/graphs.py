"""API graphs for the tests: the quick start, and changes to it."""

import copy
import json
from typing import Any

from scripts.client import Prompt
from scripts.environment import ROOT

QUICK_START = ROOT / "tests" / "workflows" / "quick_start_api.json"
VOICES = ROOT / "assets" / "voices"


def quick_start() -> Prompt:
    return json.loads(QUICK_START.read_text(encoding="utf-8"))


def bare(prompt: Prompt) -> Prompt:
    """Classes and inputs only, without titles and the host's notes."""
    return {key: node(entry["class_type"], **entry["inputs"]) for key, entry in prompt.items()}


def short_start(seed: int, **sampler: Any) -> Prompt:
    """The quick start cut to one clip of two steps; another seed makes the sampler run again."""
    return change(quick_start(), "LoopySampler", seed=seed, **{"steps": 2, "frames": 12, **sampler})


def find(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of a class."""
    [node_id] = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return node_id


def inputs(prompt: Prompt, class_type: str) -> dict[str, Any]:
    return prompt[find(prompt, class_type)]["inputs"]


def change(prompt: Prompt, class_type: str, **values: Any) -> Prompt:
    """A copy in which one node has other inputs; None unplugs one."""
    changed = copy.deepcopy(prompt)
    merged = {**inputs(changed, class_type), **values}
    kept = {name: value for name, value in merged.items() if value is not None}
    changed[find(changed, class_type)]["inputs"] = kept
    return changed


def swap(prompt: Prompt, class_type: str, new_type: str, **values: Any) -> Prompt:
    """A copy in which another node stands in the place of one, with the same links from it."""
    swapped = copy.deepcopy(prompt)
    swapped[find(swapped, class_type)] = node(new_type, **values)
    return swapped


def with_voice(prompt: Prompt, file: str) -> Prompt:
    return swap(prompt, "LoopySampleVoice", "LoadAudio", audio=file)


def with_portrait(prompt: Prompt, file: str) -> Prompt:
    return swap(prompt, "LoopySamplePortrait", "LoadImage", image=file)


def node(class_type: str, **values: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": values}
