"""Pictures for the README and the template browser, taken in the real frontend.

    .venv/bin/python scripts/screenshots.py

Needs the environment of the tests (python3 scripts/test.py makes it) and Chromium.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import av

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.browser import Frontend, open_frontend
from scripts.environment import ROOT
from scripts.host import make_base

WORKFLOWS = ROOT / "workflows"
IMAGES = ROOT / "docs" / "images"
RENDERERS = {"classic": False, "nodes_2": True}
SPEAKING = 1.0  # seconds into the video, where a mouth is open
GRAPH = {"x": 160, "y": 100, "width": 1380, "height": 720}  # the page without bars

# What the full-size workflow names, so that nothing in its picture is marked as missing.
PORTRAIT_FILES = {
    "input/portrait.png": ROOT / "assets" / "portraits" / "mina.png",
    "input/voice.wav": ROOT / "assets" / "voices" / "welcome.flac",
    "models/loopy/loopy.safetensors": None,
    "models/audio_encoders/wav2vec2-base-960h.safetensors": None,
    "models/vae/vae-ft-mse-840000-ema-pruned.safetensors": None,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder))
        add_files(base)
        with open_frontend(base) as frontend:
            frontend.set("Comfy.Minimap.Visible", False)
            show_portrait(frontend)
            for name, nodes_2 in RENDERERS.items():
                show_quick_start(frontend, name, nodes_2)
        save_frame(next(base.glob("output/**/*.mp4")), WORKFLOWS / "loopy_quick_start.jpg")


def add_files(base: Path) -> None:
    for place, source in PORTRAIT_FILES.items():
        target = base / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target) if source else target.touch()


def show_quick_start(frontend: Frontend, name: str, nodes_2: bool) -> None:
    """The graph after its run; the second renderer gets the result from the cache."""
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    load(frontend, "loopy_quick_start")
    frontend.run()
    video = frontend.page.locator("video").last
    video.wait_for(timeout=10_000)
    video.evaluate("(video, seconds) => { video.pause(); video.currentTime = seconds }", SPEAKING)
    frontend.page.wait_for_timeout(1500)
    frontend.screenshot(IMAGES / f"quick_start_{name}.png")


def show_portrait(frontend: Frontend) -> None:
    load(frontend, "loopy_portrait")
    path = WORKFLOWS / "loopy_portrait.jpg"
    frontend.page.screenshot(path=path, type="jpeg", quality=85, clip=GRAPH)


def save_frame(video: Path, target: Path) -> None:
    with av.open(str(video)) as file:
        frame = next(frame for frame in file.decode(video=0) if frame.time >= SPEAKING)
        frame.to_image().save(target, quality=90)


def load(frontend: Frontend, name: str) -> None:
    frontend.load(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
