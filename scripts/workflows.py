"""Draws the bundled workflows: a graph to run + a layout -> the file that the frontend loads.

    .venv/bin/python scripts/workflows.py

The graphs are tests/workflows/*_api.json. The real frontend turns each into its own format, so that
slots and widgets are in the order that it expects; places, sizes and notes come from here. Run it
again after a node has got a new input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.browser import Frontend, Workflow, open_frontend
from scripts.client import Prompt
from scripts.environment import ROOT

PROMPTS = ROOT / "tests" / "workflows"
WORKFLOWS = ROOT / "workflows"
REGISTRY_ID = "loopy"  # by which the frontend offers to install the pack: pyproject's name
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}

Box = tuple[int, int, int, int]  # x, y, width, height in the graph


@dataclass(frozen=True)
class Drawing:
    """How one workflow looks."""

    name: str
    prompt: str
    boxes: dict[int, Box]  # by node id
    notes: dict[Box, str]  # Markdown


QUICK_START = Drawing(
    "loopy_quick_start",
    "quick_start_api.json",
    {
        1: (0, 0, 320, 190),
        2: (0, 260, 320, 70),
        3: (0, 400, 320, 70),
        4: (380, 0, 370, 90),
        5: (380, 170, 370, 120),
        6: (380, 370, 370, 150),
        7: (810, 0, 320, 310),
        8: (1190, 0, 300, 70),
        9: (1190, 170, 300, 150),
        10: (1550, 0, 400, 520),
    },
    {
        (0, 550, 320, 190): """# Quick start

Press **Run**. After a minute or two the video plays in *Loopy Video Combine* and lies in the
folder *output/loopy*.

- Choose another portrait or voice on the left.
- Or your own voice: *Load Audio* in place of *Loopy Sample Voice*.
- Drawn faces only: the bundled model is a small one, trained on nothing else.
""",
    },
)

PORTRAIT = Drawing(
    "loopy_portrait",
    "portrait_api.json",
    {
        1: (0, 0, 320, 190),
        4: (0, 260, 320, 70),
        5: (0, 400, 320, 70),
        2: (0, 540, 320, 280),
        3: (0, 900, 320, 140),
        6: (380, 0, 370, 90),
        7: (380, 170, 370, 120),
        8: (380, 370, 370, 150),
        9: (810, 0, 320, 310),
        10: (1190, 0, 300, 70),
        11: (1550, 0, 400, 520),
    },
    {
        (810, 480, 320, 360): """# A photograph that talks

**This needs a full-size Loopy model, and none is published:** ByteDance released neither code nor
weights for Loopy. A model that you or somebody else trained with this pack goes into the folder
*models/loopy*; choose it in *Load Loopy Model*.

Beside it, unless the file carries them:

- *models/audio_encoders*: [wav2vec2-base-960h](https://huggingface.co/facebook/wav2vec2-base-960h),
  its *model.safetensors* under that name
- *models/vae*: [sd-vae-ft-mse](https://huggingface.co/stabilityai/sd-vae-ft-mse-original)

To see the graph work now, open *loopy_quick_start*.
""",
    },
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder)) as frontend:
        for drawing in (QUICK_START, PORTRAIT):
            draw(frontend, drawing)


def draw(frontend: Frontend, drawing: Drawing) -> None:
    prompt: Prompt = json.loads((PROMPTS / drawing.prompt).read_text(encoding="utf-8"))
    frontend.load_prompt(prompt)
    workflow = tidy(frontend.workflow(), drawing)
    target = WORKFLOWS / f"{drawing.name}.json"
    write(target, workflow)
    frontend.load(workflow)
    write(PROMPTS / drawing.prompt, frontend.prompt())  # the same graph, with the nodes' titles


def write(target: Path, content: dict[str, Any]) -> None:
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(target.relative_to(ROOT))


def tidy(workflow: Workflow, drawing: Drawing) -> Workflow:
    """What the frontend made, without what depends on this machine, in our places."""
    notes = [note(i, box, text) for i, (box, text) in enumerate(drawing.notes.items(), 100)]
    nodes = [tidy_node(node, drawing.boxes[node["id"]]) for node in workflow["nodes"]]
    changed = {"last_node_id": 99 + len(notes), "nodes": nodes + notes, "extra": {}}
    return {**without_blanks(workflow), **changed}


def tidy_node(node: dict[str, Any], box: Box) -> dict[str, Any]:
    sides = ("inputs", "outputs")
    slots = {side: [without_blanks(slot) for slot in node.get(side, [])] for side in sides}
    owner = REGISTRY_ID if node["type"].startswith("Loopy") else "comfy-core"
    tidied = {**without_blanks(node), **slots, "pos": box[:2], "size": box[2:]}
    tidied["properties"] = {**node["properties"], "cnr_id": owner}
    tidied["widgets_values"] = fixed_seed(node.get("widgets_values", []))
    return tidied


def without_blanks(part: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that say nothing, and the name in this browser's language."""
    kept = {name: value for name, value in part.items() if value is not None or name == "link"}
    kept.pop("localized_name", None)
    return kept


def fixed_seed(values: Sequence[Any]) -> list[Any]:
    """The same video for everybody: no new seed after a run."""
    return ["fixed" if value == "randomize" else value for value in values]


def note(node_id: int, box: Box, text: str) -> dict[str, Any]:
    place = {"pos": box[:2], "size": box[2:], "order": 0, "mode": 0, "flags": {}}
    slots = {"inputs": [], "outputs": [], "properties": {}, "widgets_values": [text]}
    return {"id": node_id, "type": "MarkdownNote", **place, **slots, **NOTE_COLOURS}


if __name__ == "__main__":
    main()
