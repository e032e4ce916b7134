"""A portrait and a voice become a talking video, in a real ComfyUI, with the bundled model.

    python3 scripts/demo.py          makes the video and prints where it is
    python3 scripts/demo.py --open   opens ComfyUI in the browser with the workflow loaded

ComfyUI and all that it needs are installed into the checkout the first time. COMFYUI_PATH names a
ComfyUI of your own to use instead, COMFYUI_PYTHON its Python. Other options go to ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.client import Client, Interrupted, Prompt, PromptError
from scripts.environment import NEWEST, ROOT, SetupError, get_host, prepare, say
from scripts.host import PACK, Host, HostError, find_pack, free_port, make_base, place_pack

DEMO = ROOT / ".demo"
PROMPT = ROOT / "tests" / "workflows" / "quick_start_api.json"
WORKFLOW = ROOT / "workflows" / "loopy_quick_start.json"  # the same graph, for the frontend
USUAL_PORT = 8188  # the browser keeps what a user arranged per address


def main() -> None:
    options, arguments = build_parser().parse_known_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us ends ComfyUI too
    try:
        show = open_in_browser if options.open else make_video
        show(arguments)
    except (SetupError, HostError, PromptError, Interrupted) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--open", action="store_true", help="open ComfyUI in the browser")
    return parser


def make_video(arguments: Sequence[str]) -> None:
    start = time.monotonic()
    place = find_place()
    alone = ["--disable-all-custom-nodes", "--whitelist-custom-nodes", place.pack]
    prompt, workflow = (json.loads(file.read_text(encoding="utf-8")) for file in (PROMPT, WORKFLOW))
    with start_host(place, [*arguments, *alone]) as host:
        say("Making the video")
        line = ProgressLine(prompt)
        outputs = Client(host.url).queue(prompt, workflow).wait(line.show)
        line.close()
    say(f"Done after {time.monotonic() - start:.0f} s: {host.output / video_path(outputs)}")
    say("To see the graph: python3 scripts/demo.py --open")


def open_in_browser(arguments: Sequence[str]) -> None:
    place = find_place()
    with start_host(place, arguments, free_port(USUAL_PORT)) as host:
        url = f"{host.url}/?template={WORKFLOW.stem}&source={place.pack}"
        say(f"ComfyUI runs at {url}\nPress Run there. Ctrl-C here stops it.")
        webbrowser.open(url)
        with suppress(KeyboardInterrupt):  # the usual way to end this
            host.wait()
    say("\nComfyUI has stopped.")


def start_host(place: Place, arguments: Sequence[str], port: int | None = None) -> Host:
    log = DEMO / "comfyui.log"
    say(f"Starting ComfyUI: about 15 seconds (log: {log})")
    return Host(place.python, place.tree, log, place.base, port, arguments)


class ProgressLine:
    """Shows each whole percent of each node; one line on a screen, many in a log."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.end = "\r" if sys.stdout.isatty() else "\n"
        self.shown = ""

    def show(self, node: str, done: float) -> None:
        title = self.prompt[node].get("_meta", {}).get("title", node)
        text = f"  {title}: {done:4.0%}"
        if text != self.shown:
            print(f"{text:<60}", end=self.end, flush=True)
        self.shown = text

    def close(self) -> None:
        print(end="\n" if self.end == "\r" else "")


def video_path(outputs: dict[str, Any]) -> Path:
    """The first video that a node reports, below the output folder."""
    items = [item for node in outputs.values() for group in node.values() for item in group]
    files = [item for item in items if isinstance(item, dict) and "filename" in item]
    video = next(file for file in files if file["filename"].endswith(".mp4"))
    return Path(video["subfolder"], video["filename"])


class Place(NamedTuple):
    """Where ComfyUI is; `base` is None for a user's own, `pack` is our folder's name in it."""

    python: Path
    tree: Path
    base: Path | None
    pack: str


def find_place() -> Place:
    DEMO.mkdir(exist_ok=True)
    if path := os.environ.get("COMFYUI_PATH"):
        tree = own_tree(Path(path).expanduser().absolute())
        return Place(own_python(tree), tree, None, add_pack(tree))
    return Place(prepare(), get_host(NEWEST), make_base(DEMO), PACK)


def own_tree(path: Path) -> Path:
    for tree in (path, path / "ComfyUI"):
        if (tree / "main.py").exists():
            return tree
    raise SetupError(f"COMFYUI_PATH={path} has no main.py; set it to the folder of ComfyUI.")


def own_python(tree: Path) -> Path:
    """The Python of a user's ComfyUI: as told, its environment, or the current one."""
    if named := os.environ.get("COMFYUI_PYTHON"):
        found = shutil.which(os.path.expanduser(named))
        if not found:
            raise SetupError(f"COMFYUI_PYTHON={named} is no program; set it to the Python of ComfyUI.")
        return Path(found).absolute()
    places = ("venv/bin", ".venv/bin", "venv/Scripts", ".venv/Scripts", "../python_embeded")
    found = [tree / place / name for place in places for name in ("python", "python.exe")]
    python = next((file for file in found if file.exists()), Path(sys.executable))
    say(f"Using {tree} with {python} (COMFYUI_PYTHON names another one)")
    return python


def add_pack(tree: Path) -> str:
    custom_nodes = tree / "custom_nodes"
    custom_nodes.mkdir(exist_ok=True)
    pack = find_pack(custom_nodes)
    if pack:
        say(f"The pack is already there: {pack}")
        return pack.name
    place_pack(custom_nodes / PACK)
    say(f"Put the pack into {custom_nodes / PACK}; delete that to remove it")
    return PACK


if __name__ == "__main__":
    main()
