"""`python -m loopy_model.evaluate videos`: the paper's metrics (appendix B) of generated videos.

Videos are paired with real ones by file name. Every network of a metric is a file that you bring
(--networks); a metric whose file is missing is "not measured", and nothing stands in for it. See
docs/evaluation.md. DIR of --report gets results.json, report.html with its videos, and a cache: a second
run measures only what is new.
"""

import argparse
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..prepare.raw import raw_videos
from ..prepare.records import CannotWrite, write_json
from .cache import Cache
from .frechet import frechet_distance
from .measures import opened
from .metrics import OF_SETS, Compared, Scores, SetScore, in_words, table
from .networks import NotMeasured
from .one_video import Settings, Tools, Video, differences, scores, tried
from .videos_page import Shown, write_report

FORMAT = "loopy-evaluation-1"
SOME = 10  # names in a sentence


@dataclass(frozen=True)
class Pair:
    name: str  # relative path of the generated video
    generated: Path
    real: Path | None


class Evaluation:
    """All pairs of a run, one after the other; features are gathered for the set metrics."""

    def __init__(self, pairs: list[Pair], settings: Settings, cache: Cache) -> None:
        self.pairs, self.cache = pairs, cache
        self.tools = Tools(settings)
        self.has_real = pairs[0].real is not None
        self.compared: list[Compared] = []
        self._samples: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def videos(self) -> Iterator[tuple[Compared, Video, Video | None]]:
        """Measures as it goes. Raises ValueError on a video that cannot be used."""
        for pair in self.pairs:
            generated, real, note = self._opened(pair)
            mine = scores(generated)
            theirs = None
            if real is not None:
                theirs = scores(real)
                mine = mine.also(tried(("DGlo", "DExp"), lambda: differences(generated, real)))  # noqa: B023
                mine = mine.also(self._gather(generated, real))
            compared = Compared(pair.name, generated.shape[0], mine, theirs, note)
            self.compared.append(compared)
            yield compared, generated, real
            for video in (generated, real):
                if video is not None:
                    video.forget()  # before the next pair is read

    def _opened(self, pair: Pair) -> tuple[Video, Video | None, str]:
        """Both with the frames that both have."""
        generated = Video(pair.generated, self.tools, self.cache)
        if pair.real is None:
            return generated, None, ""
        real = Video(pair.real, self.tools, self.cache)
        lengths = generated.shape[0], real.shape[0]
        if lengths[0] == lengths[1]:
            return generated, real, ""
        note = (
            f"{pair.name}: {lengths[0]} frames generated, {lengths[1]} real; the first {min(lengths)} count."
        )
        return generated.cut(min(lengths)), real.cut(min(lengths)), note

    def _gather(self, generated: Video, real: Video) -> Scores:
        """Keeps the samples of a pair for the set metrics -> why it has none of some of them."""
        reasons = {}
        for metric in OF_SETS:
            try:
                self._samples[metric].append((generated.features(metric), real.features(metric)))
            except NotMeasured as error:
                reasons[metric] = str(error)
        return Scores(reasons=reasons)

    def sets(self) -> dict[str, SetScore]:
        return {metric: self._set_score(metric) for metric in OF_SETS}

    def _set_score(self, metric: str) -> SetScore:
        if not self._samples[metric]:
            return SetScore(None)
        generated, real = (np.concatenate(part) for part in zip(*self._samples[metric]))
        try:
            distance = frechet_distance(generated, real)
        except ValueError as error:
            return SetScore(None, reason=str(error))
        counts = len(generated), len(real)
        return SetScore(distance, len(self._samples[metric]), counts, generated.shape[1])

    def results(self) -> dict:
        """What results.json holds."""
        return {
            "format": FORMAT,
            "landmarks": self.tools.settings.landmarks,
            "metrics": table(self.compared, self.sets(), self.has_real),
            "videos": [asdict(pair) for pair in self.compared],
        }


# --- files --------------------------------------------------------------------------------------


def pairs_of(generated: Path, real: Path | None, report: Path) -> tuple[list[Pair], list[str]]:
    """-> pairs by relative name without suffix, and notes on what has no partner. Raises ValueError."""
    for folder in filter(None, (generated, real)):
        _refuse_common_folder(folder, report)
    mine, notes = _videos_in(generated, report)
    if real is None:
        return [Pair(name, path, None) for name, path in mine.values()], notes
    theirs, more = _videos_in(real, report)
    pairs = [Pair(*mine[stem], theirs[stem][1]) for stem in mine if stem in theirs]
    if not pairs:
        raise ValueError(
            f"no video of {generated} ({_some(mine)}) has its name in {real} ({_some(theirs)}); "
            "name each generated video like its real one."
        )
    for own, others, other in ((mine, theirs, real), (theirs, mine, generated)):
        if alone := {stem: video for stem, video in own.items() if stem not in others}:
            more.append(f"left out, since {other} has no video of that name: {_some(alone)}.")
    return pairs, notes + more


def _refuse_common_folder(folder: Path, report: Path) -> None:
    if folder.resolve().is_relative_to(report.resolve()):
        raise ValueError(
            f"--report {report} holds the videos themselves; give a folder for the results alone."
        )
    if report.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--report {report} lies in {folder}, where its copies of the videos would be measured later; "
            "give a folder elsewhere."
        )


def _videos_in(folder: Path, report: Path) -> tuple[dict[str, tuple[str, Path]], list[str]]:
    """Relative name without suffix -> relative name, path; and a note on other files."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with videos.")
    names, others = raw_videos(folder, report)
    if not names:
        raise ValueError(f"{folder} holds no video; give a folder with mp4 files.")
    found: dict[str, tuple[str, Path]] = {}
    for name in names:
        stem = unicodedata.normalize("NFC", name.rpartition(".")[0])  # macOS stores accents apart
        if stem in found:
            raise ValueError(
                f"{folder} holds {found[stem][0]} and {name}; rename one, they are paired by name."
            )
        found[stem] = name, folder / name
    others = {name: (name.encode(errors="backslashreplace").decode(), folder) for name in _visible(others)}
    return found, [f"passed over in {folder}, no videos: {_some(others)}."] if others else []


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.rpartition("/")[2].startswith(".")]


def _some(videos: dict) -> str:
    names = [name for name, _ in videos.values()]
    return ", ".join(names[:SOME]) + (f" and {len(names) - SOME} more" if len(names) > SOME else "")


# --- command line -------------------------------------------------------------------------------


def _refuse_other_results(report: Path) -> None:
    """`evaluate puppet` writes files of the same names."""
    path = report / "results.json"
    if path.is_file() and _format_of(path) != FORMAT:
        raise ValueError(
            f"{path} holds other results than of videos, or none that can be read; give another --report."
        )


def _format_of(path: Path) -> str | None:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results.get("format") if isinstance(results, dict) else None


def _check_headers(pairs: list[Pair]) -> None:
    """Finds what `Evaluation` cannot use before it has worked on the others for long."""
    for pair in pairs:
        for path in filter(None, (pair.generated, pair.real)):
            with opened(path):
                pass


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loopy_model.evaluate videos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--generated", type=Path, required=True, help="folder of generated videos, 25 fps")
    parser.add_argument("--real", type=Path, help="folder of the real ones, under the same names")
    parser.add_argument("--networks", type=Path, help="folder of the metrics' networks (docs/evaluation.md)")
    parser.add_argument(
        "--landmarks",
        default="facemesh",
        help="facemesh (default), dwpose (the paper's; its two ONNX files in --networks, or "
        "dwpose:DET.onnx,POSE.onnx) or points (NAME.points.safetensors beside each video)",
    )
    parser.add_argument("--report", type=Path, required=True, help="folder that gets the results")
    parser.add_argument("--show", type=int, default=12, help="videos, frames and curves on the page (12)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="of the networks (cuda where there is one)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        run(args)
    except (ValueError, CannotWrite) as error:
        raise SystemExit(str(error)) from error
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing; install it with `pip install {error.name}`.") from error


def run(args: argparse.Namespace) -> None:
    if args.networks is not None and not args.networks.is_dir():
        raise ValueError(f"there is no folder {args.networks}; leave --networks out or give one.")
    settings, cache = Settings(args.networks, args.landmarks, args.device), Cache(args.report / "cache")
    settings.check()
    pairs, notes = pairs_of(args.generated, args.real, args.report)
    _refuse_other_results(args.report)
    _check_headers(pairs)
    evaluation = Evaluation(pairs, settings, cache)
    shown = []
    for compared, generated, real in evaluation.videos():
        if len(shown) < args.show:
            shown.append(Shown.of(compared, generated, real))
        print(f"video {len(evaluation.compared)} of {len(pairs)}: {compared.name}", flush=True)
    results = evaluation.results()
    results["notes"] = notes + [pair.note for pair in evaluation.compared if pair.note]
    write_json(args.report / "results.json", results)
    write_report(args.report, cache, results, shown)
    print(in_words(results))
    print(args.report / "report.html")
