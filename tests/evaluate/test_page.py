"""The page builder: one file with its pictures inside, whatever stands in its texts."""

import io
import re
from base64 import b64decode
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from loopy_model.evaluate import page
from loopy_model.video import write_video
from scripts.browser import open_browser
from scripts.environment import chromium


def embedded(piece: str) -> tuple[str, bytes]:
    kind, data = re.search(r'src="data:([^;]+);base64,([^"]+)"', piece).groups()
    return kind, b64decode(data)


def test_texts_are_escaped_everywhere(tmp_path: Path) -> None:
    bad = '<script>"&'
    drawn = Figure()
    pieces = [
        page.heading(bad),
        page.paragraph(bad),
        page.table([bad], [[bad]], bad),
        page.figure(drawn, bad),
        page.picture(page.strip_jpeg(np.zeros((1, 4, 4, 3), np.uint8)), bad),
        page.videos([(bad, f"{bad}.mp4")]),
    ]
    page.write_page(tmp_path / "page.html", bad, pieces)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") > 8
    assert "%3Cscript%3E%22%26.mp4" in text


def test_numbers_stand_right_and_nan_is_a_dash() -> None:
    row = page.table(["name", "value", "none"], [["a", 0.123456, float("nan")]])
    assert row.count('class="number"') == 2 and ">0.1235<" in row and ">–<" in row


@pytest.mark.parametrize("kind", ["uint8", "floats", "tensor"])
def test_a_strip_shows_the_frames_side_by_side(kind: str) -> None:
    levels = np.array([0, 255, 128], np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (3, 200, 100, 3))
    frames = frames if kind == "uint8" else frames / 255
    jpeg = page.strip_jpeg(torch.tensor(frames) if kind == "tensor" else frames, height=50)
    picture = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert picture.shape == (50, 3 * 25 + 2 * page.GAP, 3)
    middles = picture[25, [12, 12 + 25 + page.GAP, 12 + 2 * (25 + page.GAP)], 0].astype(int)
    assert np.abs(middles - levels).max() < 6


def test_a_figure_is_inside_the_page_and_always_the_same() -> None:
    def drawn() -> str:
        figure = Figure()
        figure.subplots().plot([1, 2], label="curve")
        return page.figure(figure)

    kind, content = embedded(drawn())
    assert kind == "image/svg+xml" and b"<svg" in content
    assert drawn() == drawn()


def test_a_video_is_beside_the_page() -> None:
    assert 'src="videos/a%20b.mp4"' in page.videos([("a", "videos/a b.mp4")])


def test_videos_play_in_a_browser(tmp_path: Path) -> None:
    executable = chromium()
    if executable is None:
        pytest.skip("No Chromium found: install it (apt-get install chromium) or set CHROMIUM.")
    (tmp_path / "videos").mkdir()
    video = tmp_path / "videos" / "größe 1.mp4"
    write_video(video, torch.rand(25, 32, 48, 3), Fraction(25), torch.rand(1, 48_000) - 0.5)
    page.write_page(tmp_path / "page.html", "Page", [page.videos([("a", "videos/größe 1.mp4")])])
    with open_browser(executable) as tab:
        tab.goto((tmp_path / "page.html").as_uri())
        width, seconds, reached = tab.locator("video").evaluate(PLAY)
    assert width == 48 and seconds == pytest.approx(1, abs=0.1) and reached > 0


PLAY = """video => new Promise((resolve, reject) => {
    video.muted = true
    video.onerror = () => reject(video.error.message)
    video.ontimeupdate = () => video.currentTime > 0
        && resolve([video.videoWidth, video.duration, video.currentTime])
    video.play().catch(reject)
})"""
