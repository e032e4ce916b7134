"""`python -m loopy_model.evaluate`: lip sync and identity of a puppet model on held-out material."""

import argparse
import json
from pathlib import Path

from ..pipeline import BUNDLED, Pipeline
from ..sampling import Guidance
from .lip_sync import contact_sheet, load_meter, report, videos


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loopy_model.evaluate", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=BUNDLED, help="checkpoint (default: the bundled puppet)"
    )
    parser.add_argument(
        "--faces", type=int, default=8, help="held-out faces, each with its own voice and text (8)"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each video (4)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (25)")
    parser.add_argument("--audio-ratio", type=float, default=3.0, help="guidance of the voice (3)")
    parser.add_argument("--ref-ratio", type=float, default=1.5, help="guidance of the portrait (1.5)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG or JPEG) here")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    guidance = Guidance(args.audio_ratio, args.ref_ratio)
    made = []
    for video in videos(Pipeline(args.model), args.faces, args.seconds, guidance, args.steps):
        made.append(video)
        print(f"face {len(made)} of {args.faces} done", flush=True)
    rows = report(made, load_meter())
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    if args.sheet:
        write_sheet(args.sheet, made)


def table(rows: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"{'':12}" + "".join(f"{name:>16}" for name in names)]
    lines += [
        f"{row:12}" + "".join(f"{values[name]:16.3f}" for name in names) for row, values in rows.items()
    ]
    return "\n".join(lines)


def write_sheet(path: Path, made: list) -> None:
    from PIL import Image

    sheet = (contact_sheet(made[:6]) * 255).round().byte().numpy()
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.LANCZOS).save(path)


if __name__ == "__main__":
    main()
