"""`python -m loopy_model.evaluate puppet --report DIR`: everything that is claimed of a puppet model, measured.

On held-out faces with unheard voices and text: lip sync, identity and flat areas; how it goes on after
five seconds of truth, its rhythms and its drift over a minute; how Glo and Exp follow the wanted level.
Every piece is stored in DIR as it is made, and a run that was stopped goes on from there. DIR then holds
results.json, report.html and the videos; the tables are printed too.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from ..config import PUPPET, PUPPET_RATIOS, SAMPLE_RATE
from ..diffusion import NoiseSchedule
from ..guidance import Guidance
from ..pipeline import BUNDLED, Pipeline
from ..prepare.records import CannotWrite, whole_files, write_whole
from ..puppet.clips import draw_frames
from ..puppet.meter import FaceMeter
from ..puppet.motion import MOTION
from ..puppet.train import judge_autoencoder
from ..video import read_video, write_video
from ..weights import content_digest
from .drift import clip_statistics
from .held_out import (
    METER,
    HeldOut,
    contact_sheet,
    flat_noise,
    held_out,
    identity_error,
    load_meter,
    measure,
    movement_of,
)
from .puppet_report import (
    RESULTS,
    SHEET,
    from_json,
    read_puppet_results,
    summarise,
    tables,
    to_json,
    write_report,
)
from .rhythm import blink_interval, sway_period

VERSION = 3  # of the pieces; raise it when a measurement changes
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEVEL_AUDIO_RATIO = 3.0  # at which a wanted level outweighs what the past makes likely
SOURCES = ("head movement", "expression")
FILMED = ("face-", "long-")  # how the names of the pieces begin whose videos are kept
OPEN, WIDTH, BLINK, HEAD = (MOTION.index(name) for name in ("open", "width", "blink", "head_x"))
LENGTHS = ("seconds", "long_seconds", "level_seconds")  # options
COUNTS = {"faces": 1, "first_face": 0, "long_faces": 0, "level_faces": 0, "steps": 1}  # and the least of each
PAST = PUPPET.clip.motion_span  # frames of truth before a video goes on: 5 s, whatever the model looks at
FIRST_LONG = 16  # number of the first face of the long videos: others than those of the short ones


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loopy_model.evaluate puppet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, required=True, help="folder of everything that is written")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="checkpoint (the bundled puppet)")
    parser.add_argument(
        "--meter", type=Path, default=METER, help="face meter of the laboratory (the bundled one)"
    )
    parser.add_argument("--faces", type=int, default=16, help="faces, each with its own sentences (16)")
    parser.add_argument("--first-face", type=int, default=0, help="number of the first of them (0)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each face's video (4)")
    parser.add_argument("--long-faces", type=int, default=4, help="long videos after 5 s of truth (4)")
    parser.add_argument("--long-seconds", type=float, default=60.0, help="length of the long videos (60)")
    parser.add_argument("--level-faces", type=int, default=8, help="faces for each of the levels (8)")
    parser.add_argument("--level-seconds", type=float, default=2.0, help="length of the levels' videos (2)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="NAME",
        help="make only the pieces whose names begin so (face, continued, head-movement, expression, long, "
        "long-02, vae, speed, ...), so that several processes can share the work",
    )
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (25)")
    parser.add_argument(
        "--audio-ratio", type=float, default=PUPPET_RATIOS[0], help="guidance of the voice (1.5)"
    )
    parser.add_argument(
        "--ref-ratio", type=float, default=PUPPET_RATIOS[1], help="guidance of the portrait (1.5)"
    )
    return parser


@dataclass(frozen=True)
class Piece:
    """One measurement of one video."""

    name: str
    make: Callable[[], dict]


class Evaluation:
    """Makes the videos and measures them. Raises ValueError, before anything is made, where it is asked for
    what cannot be."""

    def __init__(self, args: argparse.Namespace) -> None:
        _check(args)
        self.args, self.pipeline, self.meter = args, Pipeline(args.model), _opened_meter(args.meter)
        NoiseSchedule(self.pipeline.config.diffusion).timesteps(args.steps)
        self.clip = self.pipeline.config.clip
        self.size = self.pipeline.config.image_size
        self.made_by = {
            "version": VERSION,
            "model": content_digest(args.model)[:16],
            "meter": content_digest(args.meter)[:16],
            "sampling": [args.steps, args.audio_ratio, args.ref_ratio],
        }
        names = [piece.name for piece in self.pieces()]
        for wanted in args.only:
            if not any(name.startswith(wanted) for name in names):
                raise ValueError(
                    f"--only {wanted} begins the name of no piece; choose among {_kinds(names)}."
                )

    def pieces(self) -> Iterator[Piece]:
        args = self.args
        faces = range(args.first_face, args.first_face + args.faces)
        for n in faces:
            yield Piece(f"face-{n:02}", lambda n=n: self.talk(n))
        for n in faces:
            yield Piece(f"continued-{n:02}", lambda n=n: self.go_on(n))
        for source in SOURCES:
            for level in LEVELS:
                for n in range(args.level_faces):
                    name = f"{source.replace(' ', '-')}-{level:.2f}-{n:02}"
                    yield Piece(name, lambda s=source, v=level, n=n: self.at_level(s, v, n))
        for n in range(args.long_faces):
            yield Piece(f"long-{n:02}", lambda n=n: self.talk_long(n))
        yield Piece("vae-00", self.reconstruct)
        for threads in (1, 2):
            for branches, ratio in ((2, args.ref_ratio), (3, LEVEL_AUDIO_RATIO)):
                name = f"speed-{threads}-threads-{branches}-branches"
                yield Piece(name, lambda t=threads, r=ratio: self.race(t, r))

    def run(self) -> dict[str, dict]:
        """All pieces by name; those that are there already are read, those that are not wanted left out."""
        made, pieces = {}, list(self.pieces())
        for number, piece in enumerate(pieces, 1):
            known = self._known(piece.name)
            if known is None:
                if not piece.name.startswith(tuple(self.args.only)):
                    continue
                known = {"made_by": self._asked(piece.name), **piece.make()}
                text = to_json(known)
                write_whole(self._path(piece.name), lambda partial, text=text: partial.write_text(text))
                print(f"{number} of {len(pieces)}: {piece.name}", flush=True)
            made[piece.name] = known
        return made

    def others(self) -> list[Path]:
        """The files of pieces that this run would make again, or not at all: another model's, or of other
        settings."""
        names = {piece.name for piece in self.pieces()}
        paths = whole_files(self.args.report / "pieces", ".json")
        return [path for path in paths if path.stem not in names or self._known(path.stem) is None]

    def described(self) -> dict:
        """How the results are made."""
        asked = {name: getattr(self.args, name) for name in (*LENGTHS, "first_face")}
        return {**self.made_by, **asked}

    def _known(self, name: str) -> dict | None:
        """The piece that is there, if it is what is asked for and its video was not taken away."""
        path = self._path(name)
        if not path.is_file() or name.startswith(FILMED) and not self._video(name).is_file():
            return None
        known = from_json(path.read_text())
        return known if known.get("made_by") == self._asked(name) else None

    def _asked(self, name: str) -> dict:
        return {**self.made_by, "length": self._length(name)}

    def _path(self, name: str) -> Path:
        return self.args.report / "pieces" / f"{name}.json"

    def _video(self, name: str) -> Path:
        return self.args.report / "videos" / f"{name}.mp4"

    def _length(self, name: str) -> float:
        """In seconds; of the autoencoder's piece in faces."""
        args = self.args
        kind = name.split("-")[0]
        known = {"face": args.seconds, "long": args.long_seconds, "continued": 1.0, "vae": float(args.faces)}
        return known.get(kind, args.level_seconds)

    # --- pieces --------------------------------------------------------------------------

    def talk(self, number: int) -> dict:
        """From the portrait alone."""
        truth = held_out(number, round(self.args.seconds * self.clip.fps), self.size)
        made = self._generate(truth, number)
        self._write(f"face-{number:02}", made, truth)
        with torch.inference_mode():
            through_vae = self.pipeline.decode(self.pipeline.encode(truth.frames))
        other = held_out(number + 1, len(truth.motion), self.size, drawn=1).portrait
        return {
            "read": self._read(made),
            "truth": truth.motion.tolist(),
            "ceiling": self._read(through_vae),
            "identity": identity_error(made, truth.portrait),
            "identity_ceiling": identity_error(through_vae, truth.portrait),
            "identity_floor": identity_error(made, other),
            "flat_noise": flat_noise(made),
            "flat_noise_ceiling": flat_noise(through_vae),
            **self._movement(truth, made, truth.motion),
        }

    def go_on(self, number: int) -> dict:
        """The second after five seconds of truth."""
        truth = held_out(number, PAST + self.clip.fps, self.size)
        made = self._generate(truth, number, past=truth.frames[:PAST])
        return {
            "head": self._read(made, HEAD),
            "truth": truth.motion[PAST:, HEAD].tolist(),
            "last": truth.motion[PAST - 1, HEAD].item(),
        }

    def at_level(self, source: str, level: float, number: int) -> dict:
        """Glo and Exp of what is made for a wanted level."""
        truth = held_out(number, round(self.args.level_seconds * self.clip.fps), self.size)
        guidance = Guidance(LEVEL_AUDIO_RATIO, self.args.ref_ratio)
        made = self._generate(truth, number, guidance, level=(source, level))
        return self._movement(truth, made, truth.motion)

    def talk_long(self, number: int) -> dict:
        """Long after five seconds of truth: rhythms and drift."""
        fps = self.clip.fps
        frames = PAST + round(self.args.long_seconds * fps)
        truth = held_out(FIRST_LONG + number, frames, self.size, drawn=PAST)
        made = self._generate(truth, number, past=truth.frames)
        self._write(f"long-{number:02}", made, truth, start=PAST)
        read, true = np.array(self._read(made)), truth.motion[PAST:].numpy()
        drawn = self._drawn(truth.identity, true)
        with torch.inference_mode():
            through_vae = self.pipeline.decode(self.pipeline.encode(drawn))
        return {
            "read": read.round(4).tolist(),
            "truth": true.round(4).tolist(),
            "blink_interval": blink_interval(read[:, BLINK], fps),
            "blink_interval_truth": blink_interval(true[:, BLINK], fps),
            "sway_period": sway_period(read[:, HEAD], fps),
            "sway_period_truth": sway_period(true[:, HEAD], fps),
            "statistics": self._statistics(made),
            "statistics_truth": self._statistics(drawn),
            "statistics_posed": self._statistics(self._drawn(truth.identity, read)),
            "statistics_ceiling": self._statistics(through_vae),
            "statistics_ceiling_posed": self._statistics(
                self._drawn(truth.identity, np.array(self._read(through_vae)))
            ),
            **self._movement(truth, made, truth.motion[PAST:]),
        }

    def reconstruct(self) -> dict:
        """What the autoencoder makes of the drawn truth."""
        frames = torch.cat([held_out(n, 25, self.size).frames[::5] for n in range(self.args.faces)])
        return judge_autoencoder(self.pipeline.vae, rearrange(frames, "f h w c -> f c h w") * 2 - 1)

    def race(self, threads: int, audio_ratio: float) -> dict:
        """From portrait and voice to four whole clips of frames, the faster of two after one that is not counted."""
        before, seconds = torch.get_num_threads(), 4 * self.clip.frames / self.clip.fps
        truth = held_out(0, 4 * self.clip.frames, self.size, drawn=1)
        guidance = Guidance(audio_ratio, self.args.ref_ratio)
        torch.set_num_threads(threads)
        try:
            taken = []
            for _ in range(3):
                began = time.perf_counter()
                self._generate(truth, 0, guidance)
                taken.append(time.perf_counter() - began)
            return {"seconds_per_second": min(taken[1:]) / seconds}
        finally:
            torch.set_num_threads(before)

    # --- tools ---------------------------------------------------------------------------

    def _generate(
        self, truth: HeldOut, seed: int, guidance: Guidance | None = None, **conditions: object
    ) -> Tensor:
        guidance = guidance or Guidance(self.args.audio_ratio, self.args.ref_ratio)
        return self.pipeline(
            truth.portrait, truth.waveform, SAMPLE_RATE, guidance, self.args.steps, seed, **conditions
        )

    def _read(self, frames: Tensor, channel: int | slice = slice(None)) -> list:
        return measure(self.meter, frames)[:, channel].tolist()

    def _drawn(self, identity: np.ndarray, motion: np.ndarray) -> Tensor:
        """The drawing of a face in these poses (F, 8) -> (F, S, S, 3) 0..1."""
        frames = draw_frames(identity, motion.astype(np.float32), self.size)
        return rearrange(frames, "f c h w -> f h w c").float() / 255

    def _statistics(self, frames: Tensor) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in clip_statistics(frames, self.clip.frames).items()}

    def _movement(self, truth: HeldOut, made: Tensor, true: Tensor) -> dict[str, float]:
        """Mean Glo and Exp per clip, of what was made and of the truth."""
        glo, exp = movement_of(truth.identity, measure(self.meter, made), self.clip.frames)
        glo_truth, exp_truth = movement_of(truth.identity, true, self.clip.frames)
        return {"glo": glo, "exp": exp, "glo_truth": glo_truth, "exp_truth": exp_truth}

    def _write(self, name: str, made: Tensor, truth: HeldOut, start: int = 0) -> None:
        sound = truth.waveform[:, start * SAMPLE_RATE // self.clip.fps :]
        make_folder(self._video(name).parent)
        try:
            write_video(self._video(name), made, Fraction(self.clip.fps), sound, SAMPLE_RATE)
        except OSError as error:
            raise CannotWrite(f"cannot write {self._video(name)}: {error.strerror or error}.") from error


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError with one sentence."""
    for name, path in (("model", args.model), ("meter", args.meter)):
        if not path.is_file():
            raise ValueError(f"there is no {name} {path}; check the path.")
    for name, least in COUNTS.items():
        if (count := getattr(args, name)) < least:
            raise ValueError(f"{_option(name)} is {count}; give {least} or more.")
    for name in LENGTHS:
        if (seconds := getattr(args, name)) * PUPPET.clip.fps < 1:
            raise ValueError(f"{_option(name)} is {seconds:g}, less than a video frame; give more.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kinds(names: list[str]) -> str:
    """What the names begin with, each once."""
    return ", ".join(dict.fromkeys(name.partition("-")[0] for name in names))


def _opened_meter(path: Path) -> FaceMeter:
    try:
        return load_meter(path)
    except (SafetensorError, RuntimeError) as error:  # no such file, or of another network
        raise ValueError(f"{path} is no face meter; `python -m loopy_model.puppet` makes one.") from error


def make_folder(folder: Path) -> None:
    """Before the work of which it gets the results. Raises `CannotWrite`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write {folder}: {error.strerror}.") from error


def write_sheet(args: argparse.Namespace, names: Iterable[str], shown: int = 6) -> None:
    """contact_sheet.jpg: portrait, generated frames and truth of the first faces among these pieces."""
    from PIL import Image

    rows, faces = [], sorted(name for name in names if name.startswith("face-"))
    for name in faces[:shown]:
        made, fps, _, _ = read_video(args.report / "videos" / f"{name}.mp4")
        truth = held_out(int(name.removeprefix("face-")), round(args.seconds * fps), made.shape[1])
        rows.append((truth.portrait, made, truth.frames))
    if rows:
        sheet = Image.fromarray((contact_sheet(rows) * 255).round().byte().numpy())
        write_whole(args.report / SHEET, lambda path: sheet.save(path, "jpeg", quality=88))


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        run(args)
    except (ValueError, CannotWrite) as error:  # a sentence
        raise SystemExit(str(error)) from error


def run(args: argparse.Namespace) -> None:
    read_puppet_results(args.report)  # refuses those of `evaluate videos`, which would be overwritten
    evaluation = Evaluation(args)
    make_folder(args.report / "pieces")
    pieces = evaluation.run()
    results = {"made_by": evaluation.described(), **summarise(pieces)}
    write_whole(args.report / RESULTS, lambda path: path.write_text(to_json(results, indent=2)))
    write_sheet(args, pieces)
    write_report(args.report, results, pieces)
    print(tables(results))
