"""Raw videos become what Loopy trains on.

`python -m loopy_model.prepare clips RAW DATA | encode DATA --model MODEL | report DATA`
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .filters import Filters, limits

PROGRAM = "python -m loopy_model.prepare"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_clips(commands)
    _add_encode(commands)
    _add_report(commands)
    return parser


def _add_clips(commands) -> None:
    parser = commands.add_parser(
        "clips",
        help="filter, cut and crop raw videos",
        description="Filter, cut and crop raw videos as the paper's appendix A does. The same command goes on "
        "where it was stopped.",
    )
    parser.set_defaults(run=clips)
    parser.add_argument("raw", type=Path, help="folder of raw videos; its sub-folders count")
    parser.add_argument("data", type=Path, help="folder for clips, records and report")
    parser.add_argument(
        "--landmarks",
        default="facemesh",
        metavar="SPEC",
        help="facemesh (default), dwpose:DET.onnx,POSE.onnx, or points (NAME.points.safetensors by each video)",
    )
    parser.add_argument("--sync", metavar="FILE", help="SyncNet's weights (default: sync is not measured)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a clip's side (512)")
    parser.add_argument("--workers", type=_count, default=1, help="processes (1)")
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="part I of N, for machines on one disk"
    )
    parser.add_argument(
        "--test-share", type=float, default=0.05, help="of raw videos kept for testing (0.05)"
    )
    parser.add_argument(
        "--test", nargs="+", default=[], metavar="NAME", help="raw videos to keep for testing"
    )
    parser.add_argument("--again", action="store_true", help="do everything anew, with other settings too")
    parser.add_argument(
        "--patience", type=float, default=300, metavar="S", help="a worker silent for so long hangs (300)"
    )
    group = parser.add_argument_group("filters", "a piece exactly at a limit is kept")
    for name, kind, default, text in limits():
        flag = "--" + name.replace("_", "-")
        text = f"{text} ({default:g})".replace("%", "%%")
        group.add_argument(flag, type=kind, default=default, metavar="X", help=text)


def _add_encode(commands) -> None:
    parser = commands.add_parser(
        "encode",
        help="VAE latents and speech features of the clips",
        description="Run the VAE and the speech encoder once per clip. The same command goes on where it was stopped.",
    )
    parser.set_defaults(run=encode)
    add = parser.add_argument
    add("data", type=Path, help=f"folder that `{PROGRAM} clips` filled")
    add("--model", type=Path, help="Loopy checkpoint that carries both encoders")
    add("--vae", type=Path, help="SD1.5 VAE: safetensors file or diffusers folder (default: that of --model)")
    add("--speech", type=Path, help="wav2vec 2.0: transformers folder (default: that of --model)")
    add("--size", type=int, help="pixels that the VAE sees (default: the model's, or 512)")
    add("--device", help="cuda or cpu (default: what is there)")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="part I of N, for machines on one disk")
    add("--again", action="store_true", help="replace what other encoders or another size made")


def _add_report(commands) -> None:
    parser = commands.add_parser("report", help="write the report of a data folder again")
    parser.set_defaults(run=report)
    parser.add_argument("data", type=Path)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return count


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 1 to N, as in 2/4")
    return int(match[1]), int(match[2])


def clips(args: argparse.Namespace) -> int:
    """-> exit status."""
    from .records import write_passed_over
    from .report import summary, write_report
    from .run import check_settings, is_done, plan
    from .source import abandon

    settings = _settings(args)
    _check_folders(args.raw, args.data)
    jobs, others = plan(args.raw, args.data, settings, args.shard)
    if others:
        print(f"Files in {args.raw} that are passed over: {len(others)}; report.md names them.")
    if jobs:
        _check_models(settings, jobs[0].path)
    check_settings(args.data, settings, args.again)
    write_passed_over(args.data, others)
    if args.again:
        for job in jobs:
            abandon(job)
    _run([job for job in jobs if not is_done(job)], args)
    result = write_report(args.data)
    print(summary(result))
    return 0 if result.clips else 1


def _settings(args: argparse.Namespace):
    from .run import Refused
    from .source import Settings

    if args.size < 16 or args.size % 8:
        raise Refused(f"--size {args.size}: the autoencoder needs a multiple of 8.")
    if not 0 <= args.test_share <= 1:
        raise Refused(f"--test-share {args.test_share}: give a share from 0 to 1.")
    try:
        filters = Filters(**{name: getattr(args, name) for name, *_ in limits()})
    except ValueError as error:
        raise Refused(str(error)) from error
    return Settings(filters, args.landmarks, args.sync, args.size, args.test_share, tuple(sorted(args.test)))


def _check_folders(raw: Path, data: Path) -> None:
    from .run import Refused

    if not raw.is_dir():
        raise Refused(f"{raw} is no folder; give the one with the raw videos.")
    if raw.resolve() == data.resolve():
        raise Refused("the raw and the data folder are the same; give another data folder.")


def _check_models(settings, video: Path) -> None:
    """What all videos need is looked for once, before the work begins."""
    from .landmarks import detector_for
    from .run import Refused

    try:
        if settings.landmarks != "points":  # those files belong to single videos
            detector_for(settings.landmarks, video)
        if settings.sync:
            from .sync import sync_scorer

            sync_scorer(Path(settings.sync))
    except (ValueError, ImportError, OSError) as error:
        raise Refused(str(error)) from error


def _run(jobs: list, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .run import run

    # The rate is that of the whole run: workers finish in bursts, and videos differ in length.
    with tqdm(total=len(jobs), unit="video", disable=not jobs, miniters=0, smoothing=0) as bar:

        def show(finished: int, seconds: float) -> None:
            bar.set_postfix_str(f"{seconds / 60:.1f} min of those in work", refresh=False)
            bar.update(finished)

        run(jobs, args.workers, args.patience, show)


def encode(args: argparse.Namespace) -> int:
    from .encode import EncodeSettings, encode_clips, size_of, summary
    from .run import Refused

    vae, speech = args.vae or args.model, args.speech or args.model
    if vae is None or speech is None:
        raise Refused("give --model with a Loopy checkpoint, or --vae and --speech.")
    try:
        number, shards = args.shard
        size = args.size or size_of(vae)
        settings = EncodeSettings(vae, speech, size, args.device, (number - 1, shards), args.again)
        counts = encode_clips(args.data, settings)
        text = summary(args.data, counts)
        (args.data / "encoded").mkdir(exist_ok=True)  # this shard may have had nothing to do
        (args.data / "encoded" / "report.txt").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write {error.filename or args.data}: {error.strerror or error}.") from error
    except ValueError as error:
        raise Refused(str(error)) from error
    print(text)
    return 0 if counts["encoded"] + counts["already there"] else 1


def report(args: argparse.Namespace) -> int:
    from .report import summary, write_report
    from .run import SETTINGS_FILE, Refused

    if not (args.data / SETTINGS_FILE).is_file():
        raise Refused(f"{args.data} is no data folder of `prepare clips`.")
    result = write_report(args.data)
    print(summary(result))
    return 0 if result.clips else 1


def main(arguments: Sequence[str] | None = None) -> None:
    from .records import CannotWrite
    from .run import Refused

    args = build_parser().parse_args(arguments)
    try:
        status = args.run(args)
    except (Refused, CannotWrite) as error:
        raise SystemExit(f"{PROGRAM}: {error}") from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
