"""report.png: the pictures of kept and rejected pieces."""

from pathlib import Path
from typing import NamedTuple

from .outcome import Outcome, held_against, measured
from .records import name_of
from .scan import THUMBNAIL
from .source import COLUMNS

SHOWN = 60  # pictures of each kind
ACROSS = 10  # pictures in a row
LONGEST_NAME, LONGEST_LINE = 20, 24  # letters below a picture: of a file's name, of a value


class Tile(NamedTuple):
    """One picture: number `index` of the sheet beside the record of `source`."""

    source: str
    index: int
    lines: tuple[str, ...]


def tiles_of(outcome: Outcome) -> tuple[list[Tile], list[Tile]]:
    """(kept, rejected), the rejected ordered by reason."""
    kept, rejected = [], []
    for source in outcome.sources:
        name, split = shortened(Path(source.source).name), outcome.split_of(source.source)
        for index, clip in enumerate(source.clips):
            sound = "voiced" if clip.voiced else "silent"
            lines = (f"{clip.end - clip.start:.1f} s, {sound}", f"{split}, at {clip.start:.1f} s", name)
            kept.append(Tile(source.source, index, lines))
        for index, piece in enumerate(source.rejected, len(source.clips)):
            against = f" / {held_against(piece.limit)}" if piece.limit is not None else ""
            lines = (piece.reason, f"{measured(piece.reason, piece.value)}{against}", name)
            rejected.append(Tile(source.source, index, lines))
    return kept, sorted(rejected, key=lambda tile: tile.lines[0])


def shortened(name: str) -> str:
    """Its beginning and its end, with the kind of file."""
    if len(name) <= LONGEST_NAME:
        return name
    end = LONGEST_NAME // 2
    return f"{name[: LONGEST_NAME - end - 1]}…{name[-end:]}"


def _evenly(tiles: list[Tile]) -> list[Tile]:
    """Up to SHOWN of them, spread over all."""
    count = min(SHOWN, len(tiles))
    return [tiles[len(tiles) * i // count] for i in range(count)]


def contact_sheet(data: Path, outcome: Outcome):
    """A PIL image."""
    from PIL import Image, ImageDraw

    groups = [
        (f"{word} {len(tiles)}" + (f", {SHOWN} of them shown" if len(tiles) > SHOWN else ""), _evenly(tiles))
        for word, tiles in zip(("kept", "rejected"), tiles_of(outcome))
    ]
    cell, title = THUMBNAIL + 64, 40
    height = sum(title + cell * -(-len(tiles) // ACROSS) for _, tiles in groups)
    sheet = Image.new("RGB", (ACROSS * (THUMBNAIL + 10) + 10, height + 10), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for text, tiles in groups:
        draw.text((10, top + 8), text, "black", font=_font(20))
        top += title
        for number, tile in enumerate(tiles):
            row, column = divmod(number, ACROSS)
            _draw_tile(sheet, draw, data, tile, 10 + column * (THUMBNAIL + 10), top + row * cell)
        top += cell * -(-len(tiles) // ACROSS)
    return sheet


def _draw_tile(sheet, draw, data: Path, tile: Tile, left: int, top: int) -> None:
    draw.rectangle((left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1), fill=(225, 225, 225))
    picture = thumbnail(data, tile)
    if picture is not None:
        sheet.paste(picture, (left, top))
    for number, line in enumerate(tile.lines):
        draw.text((left, top + THUMBNAIL + 2 + 18 * number), line[:LONGEST_LINE], "black", font=_font(13))


def thumbnail(data: Path, tile: Tile):
    """None: the video could not be read, its sheet is gone, or it had more pieces than a sheet shows."""
    from PIL import Image

    row, column = divmod(tile.index, COLUMNS)
    corner = column * THUMBNAIL, row * THUMBNAIL
    try:
        with Image.open(data / "sources" / f"{name_of(tile.source)}.jpg") as sheet:
            if corner[1] >= sheet.height:
                return None
            return sheet.crop((*corner, corner[0] + THUMBNAIL, corner[1] + THUMBNAIL))
    except OSError:
        return None


def _font(size: int):
    """A scalable one that knows more letters than Pillow's own, if matplotlib is there."""
    from PIL import ImageFont

    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)
