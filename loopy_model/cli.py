"""`loopy generate | import | merge | prepare | train | evaluate | puppet`.

`python -m loopy_model.cli generate`, `import` and `merge`; the other parts run as `python -m loopy_model.<part>` too.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from .adapter import NotAnAdapter
from .adapter import merge as merge_files
from .budget import budget
from .config import PUPPET_RATIOS, SAMPLE_RATE
from .diffusion import NoiseSchedule
from .guidance import Guidance
from .pipeline import BUNDLED, Pipeline
from .sampling import Request, SamplingOptions, Step, refuse_unlike_distilled
from .solvers import SOLVERS
from .video import read_voice, write_video
from .weights import NotALoopyModel


def finite(text: str) -> float:
    """As argparse's type: a NaN would go through everything, into a file at last."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def refuse_output(output: Path, inputs: Iterable[Path | None]) -> None:
    """Before any work: what cannot be written, or would replace what it is made from. Ends in a sentence."""
    if output.is_dir():
        raise SystemExit(f"{output} is a folder; give the file to write.")
    given = [path.resolve() for path in inputs if path]
    if any(path in (output.resolve(), *output.resolve().parents) for path in given) and output.exists():
        raise SystemExit(f"{output} would replace what it is made from; give another file to write.")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loopy generate", description="A portrait and a voice become a talking video."
    )
    parser.add_argument("portrait", type=Path, help="picture file; its centred square is used")
    parser.add_argument("voice", type=Path, help="sound file, any rate")
    parser.add_argument("output", type=Path, help="mp4 file to write")
    parser.add_argument(
        "--model", type=Path, default=BUNDLED, help="checkpoint (default: the bundled puppet)"
    )
    parser.add_argument("--adapter", type=Path, help="what fine-tuning changed in that checkpoint (none)")
    parser.add_argument(
        "--adapter-strength", type=finite, default=1.0, help="0 is without, 1 is as it was trained (1)"
    )
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (25)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument(
        "--audio-ratio", type=finite, default=PUPPET_RATIOS[0], help="guidance of the voice (1.5)"
    )
    parser.add_argument(
        "--ref-ratio", type=finite, default=PUPPET_RATIOS[1], help="guidance of the portrait (1.5)"
    )
    parser.add_argument(
        "--solver", choices=SOLVERS, default="ddim", help="the others need fewer steps (ddim)"
    )
    parser.add_argument(
        "--eta", type=finite, default=0.0, help="of ddim: fresh noise in every step, 0 to 1 (0)"
    )
    return parser


def generate(arguments: Sequence[str]) -> None:
    args = build_parser().parse_args(arguments)
    if not args.output.parent.is_dir():
        raise SystemExit(f"there is no folder {args.output.parent} to write {args.output.name} into.")
    refuse_output(args.output, (args.portrait, args.voice, args.model, args.adapter))
    try:
        pipeline = Pipeline(args.model, args.adapter, args.adapter_strength)
    except (NotALoopyModel, NotAnAdapter) as error:
        raise SystemExit(str(error)) from error
    request = _request(args, pipeline)
    needed = budget(pipeline.config, request)
    if not needed.frames:
        raise SystemExit(
            f"{args.voice} has no sound, or less than half a video frame (20 ms); choose a longer recording."
        )
    print(needed, file=sys.stderr)
    _write(args, pipeline, request)
    print(args.output)


def _request(args: argparse.Namespace, pipeline: Pipeline) -> Request:
    """What is asked for, with portrait and voice encoded; what is not possible is refused before."""
    from PIL import Image, ImageOps

    guidance = Guidance(args.audio_ratio, args.ref_ratio)
    try:
        options = SamplingOptions(args.solver, args.eta)
        NoiseSchedule(pipeline.config.diffusion).timesteps(args.steps)
        refuse_unlike_distilled(pipeline.config, args.steps, guidance, options)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    with _reading(args.portrait), Image.open(args.portrait) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")  # as the phone was held
        portrait = torch.from_numpy(np.asarray(upright, dtype=np.float32) / 255)
    with _reading(args.voice):  # block by block, while it is encoded
        voice = read_voice(args.voice, SAMPLE_RATE)
        return pipeline.request(portrait, voice, guidance, args.steps, args.seed, options=options)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from av import FFmpegError
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (OSError, FFmpegError, DecompressionBombError) as error:
        raise SystemExit(f"cannot read {path}: {error}") from error
    except ValueError as error:  # a sentence, also of too small a picture
        raise SystemExit(str(error)) from error


def _write(args: argparse.Namespace, pipeline: Pipeline, request: Request) -> None:
    """Clip after clip into the file, with a progress bar."""
    from tqdm import tqdm

    with tqdm(unit="step") as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update()

        clips = pipeline.clips(request, show)
        try:
            write_video(args.output, clips, Fraction(pipeline.config.clip.fps), args.voice)
        except OSError as error:
            raise SystemExit(f"cannot write {args.output}: {error.strerror}.") from error


def merge(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="loopy merge", description="A checkpoint with an adapter in it.")
    parser.add_argument("model", type=Path, help="checkpoint that the adapter was trained on")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("result", type=Path, help="checkpoint to write")
    parser.add_argument("--strength", type=finite, default=1.0, help="1 is as it was trained (1)")
    args = parser.parse_args(arguments)
    refuse_output(args.result, (args.model, args.adapter))
    try:
        merge_files(args.model, args.adapter, args.result, args.strength)
    except (NotALoopyModel, NotAnAdapter, OSError) as error:
        raise SystemExit(str(error)) from error
    print(args.result)


def import_donor(arguments: Sequence[str]) -> None:
    from .donors import NotADonor, prepare, read, write

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    parser = argparse.ArgumentParser(
        prog="loopy import",
        description="A full-size Loopy model from public weights, to be fine-tuned. docs/importing.md of the "
        "repository lists them.",
    )
    parser.add_argument("donors", type=Path, nargs="+", help="weight files or folders, in any order")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write (.safetensors)")
    parser.add_argument(
        "--layout",
        choices=("loopy", "joint"),
        default="loopy",
        help="joint: one temporal layer, motion frames beside the clip (loopy)",
    )
    parser.add_argument("--dtype", choices=dtypes, default="fp16", help="of the stored weights (fp16)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that no donor has (0)")
    parser.add_argument("--dry-run", action="store_true", help="print the report and write nothing")
    args = parser.parse_args(arguments)
    refuse_output(args.output, args.donors)
    try:
        made = prepare((file for donor in args.donors for file in read(donor)), args.layout)
        print(made.report, flush=True)
        if not args.dry_run:
            write(made, args.output, args.seed, dtypes[args.dtype])
            print(args.output)
    except NotADonor as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(
            f"cannot write or read {error.filename or args.output}: {error.strerror or error}."
        ) from error


HERE = {"generate": generate, "import": import_donor, "merge": merge}


def main() -> None:
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        return print(__doc__)
    if command in HERE:
        return HERE[command](rest)
    if command not in ("prepare", "train", "evaluate", "puppet"):
        raise SystemExit(__doc__)
    if not (Path(__file__).parent / command).is_dir():
        raise SystemExit(
            f"the Registry's archive has no `loopy {command}`; take a git checkout of the project for it."
        )
    sys.argv = [f"loopy {command}", *rest]
    if command == "prepare":
        from .prepare.__main__ import main as run
    elif command == "train":
        from .train.__main__ import main as run
    elif command == "evaluate":
        from .evaluate.__main__ import main as run
    else:
        from .puppet.__main__ import main as run
    run()


if __name__ == "__main__":
    main()
