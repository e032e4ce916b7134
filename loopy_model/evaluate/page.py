"""A report as one HTML file: text, tables, curves, strips of frames and videos that play.

Every function gives a piece of HTML with its text escaped; `write_page` puts the pieces under a title.
Curves and pictures are inside the file. Videos are beside it, under paths relative to it, so that its folder
can be moved.
"""

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from torch import Tensor

from ..prepare.records import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 }
div.table { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse }
caption, figcaption { text-align: left; opacity: .75; padding: .3rem 0 }
th, td { border-bottom: 1px solid #8886; padding: .25rem .7rem; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 1rem 0 }
img { max-width: 100% }
img.curves { background: white }
div.videos { display: flex; flex-wrap: wrap; gap: 1rem }
div.videos figure { margin: 0; flex: 0 1 24rem }
video { width: 100% }
"""
JPEG_QUALITY = 85
GAP = 4  # pixels between the pictures of a strip


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str | float]], caption: str = "") -> str:
    """Text stands left; numbers stand right and are rounded to four digits, NaN is a dash."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table"><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{number(value)}</td>'


def number(value: float) -> str:
    """Whole numbers in full, others rounded to four digits."""
    return "–" if value != value else str(value) if isinstance(value, int) else f"{value:.4g}"


def figure(drawn: "Figure", caption: str = "") -> str:
    """The curves of a matplotlib figure; the same figure gives the same text."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loopy"}):
        drawn.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    return _image("image/svg+xml", file.getvalue(), caption, "curves")


def strip_jpeg(frames: np.ndarray | Tensor, height: int = 128) -> bytes:
    """Frames (F, H, W, 3), uint8 or 0..1, side by side in one JPEG file, `height` pixels high at most."""
    import PIL.Image

    pictures = [_thumbnail(PIL.Image.fromarray(frame), height) for frame in as_bytes(frames)]
    width, height = pictures[0].size  # of all: frames of a video are alike
    sheet = PIL.Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for index, small in enumerate(pictures):
        sheet.paste(small, (index * (width + GAP), 0))
    file = io.BytesIO()
    sheet.save(file, "jpeg", quality=JPEG_QUALITY)
    return file.getvalue()


def as_bytes(frames: np.ndarray | Tensor) -> np.ndarray:
    """(F, H, W, 3) uint8 or 0..1 -> uint8."""
    frames = frames.detach().cpu().float().numpy() if isinstance(frames, Tensor) else frames
    if frames.dtype == np.uint8:
        return frames
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


def _thumbnail(image: "Image", height: int) -> "Image":
    if image.height <= height:
        return image
    return image.resize((max(1, round(image.width * height / image.height)), height))


def picture(jpeg: bytes, caption: str = "") -> str:
    return _image("image/jpeg", jpeg, caption, "frames")


def _image(kind: str, content: bytes, caption: str, style: str) -> str:
    source = f"data:{kind};base64,{b64encode(content).decode()}"
    return _captioned(f'<img class="{style}" alt="{escape(caption)}" src="{source}">', caption)


def _captioned(content: str, caption: str) -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{words}</figure>"


def videos(shown: Iterable[tuple[str, str]]) -> str:
    """(caption, path) side by side. The path is relative to the page, with forward slashes."""
    players = (
        _captioned(f'<video controls playsinline preload="metadata" src="{quote(path)}"></video>', caption)
        for caption, path in shown
    )
    return f'<div class="videos">{"".join(players)}</div>'


def write_page(path: Path, title: str, pieces: Iterable[str]) -> None:
    """The file appears when it is complete. Raises `prepare.records.CannotWrite`."""
    body = "\n".join([heading(title, 1), *pieces])
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
