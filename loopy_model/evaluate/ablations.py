"""`python -m loopy_model.evaluate ablations --run-dir DIR`: the paper's table 3 in miniature.

Every variant of `VARIANTS` goes on from the same net, which speaks but has no memory yet, with the same
budget, seeds and samples, and is then measured on the same held-out clips and noise. Trainings and
measurements go on where they were stopped. As soon as RUN_DIR/shared/loopy.safetensors is there, a
second process may work on other --variants or --seeds of the same run at the same time.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from ..config import LoopyConfig
from ..model import Loopy
from ..pipeline import Pipeline
from ..prepare.records import CannotWrite, write_whole
from ..puppet.laboratory import LABORATORY, Laboratory, check_counts
from ..puppet.pack import pack
from ..train.data import Place, PreparedClips, Samples, collate
from ..train.export import train
from ..train.objective import Objective
from ..train.record import validation_conditions, with_condition
from ..train.stages import RECIPES, Recipe, Stage
from ..weights import content_digest, load_tensors, read_header
from .ablation_report import LOSS, MEASURED, read_results, write_report
from .puppet import Evaluation, make_folder, write_sheet
from .puppet import build_parser as puppet_parser
from .variants import VARIANTS, config_of, folder_of

METER = "meter.safetensors"  # the last thing that a laboratory gets
SIZE = (
    64  # 4x4 latent cells train nearly three times as fast as 8x8; only differences between models count here
)
STAGE_ONE, STAGE_TWO, STAGE_THREE, _ = RECIPES["puppet"].stages
# One branch (both ratios 1): guidance would hide what a model has learnt, at three times the cost.
SETTINGS = "--faces 8 --seconds 3 --long-faces 2 --long-seconds 60 --level-faces 0 --steps 12 --audio-ratio 1 --ref-ratio 1"
LOSS_VERSION = 2  # raise it when these draws change
LOSS_SAMPLES = 192  # windows of the held-out clips, each with its own noise and timestep
# Timesteps as in the variants' own training: below some 900 the noisy clip shows by itself what the past would tell.
LOSS_STAGE = replace(STAGE_THREE, face_weight=1.0, motion_noise=0.0)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loopy_model.evaluate ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lab",
        type=Path,
        help="run directory of `python -m loopy_model.puppet` to train and measure with (one of 64x64 pixels "
        "is made in RUN_DIR/lab)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that draw and encode its clips (1)")
    parser.add_argument("--run-dir", type=Path, required=True, help="everything is written here")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="default: all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="default: 0 1")
    parser.add_argument(
        "--shared-steps",
        type=int,
        nargs=2,
        default=[1000, 2500],
        metavar=("ONE", "TWO"),
        help="steps of the two stages that all variants share (1000 2500)",
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps of each variant's own training (1000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    return parser


def recipe_of(name: str, config: LoopyConfig, seed: int, *stages: Stage) -> Recipe:
    return replace(RECIPES["puppet"], name=name, config=config, stages=stages, seed=seed)


class Ablations:
    """One run directory: what is shared, a folder per variant and seed, and what was measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.lab = args, args.lab or made_laboratory(args.run_dir / "lab", args.workers)
        self.data = self.lab / "prepared"
        self.base = read_header(self.lab / "encoders.safetensors").config

    def run(self) -> dict[str, dict]:
        """Results by "variant/seed-n"; also those that another process has put there."""
        for seed in self.args.seeds:
            for variant in self.args.variants:
                print(f"{variant}, seed {seed}", flush=True)
                self.measure(self.folder(variant, seed), self.train(variant, seed))
        return read_results(self.args.run_dir)

    def folder(self, variant: str, seed: int) -> Path:
        return self.args.run_dir / folder_of(variant, seed)

    # --- training ------------------------------------------------------------------------

    def train(self, variant: str, seed: int) -> Path:
        """-> the variant's model."""
        config = config_of(variant, self.base)
        stage = replace(STAGE_THREE, steps=self.args.steps)  # the one that teaches rhythms
        base = started_from(self.shared, config, self.base, seed)
        return train(recipe_of(variant, config, seed, stage), self.data, self.folder(variant, seed), base)

    @cached_property
    def shared(self) -> dict[str, torch.Tensor]:
        """The puppet's first two stages, seed 0, of a net that sees no motion frames."""
        config = replace(self.base, unet=replace(self.base.unet, temporal="intra"))
        both = zip((STAGE_ONE, STAGE_TWO), self.args.shared_steps)
        recipe = recipe_of("shared", config, 0, *(replace(stage, steps=steps) for stage, steps in both))
        return load_tensors(train(recipe, self.data, self.args.run_dir / "shared"))["loopy"]

    # --- measuring -----------------------------------------------------------------------

    def measure(self, folder: Path, loopy: Path) -> None:
        """Makes what is missing of the pieces and of the held-out loss, which comes last."""
        whole = pack(self.lab, loopy, folder / "whole.safetensors")
        files = ["--report", folder / MEASURED, "--model", whole, "--meter", self.lab / METER]
        asked = [*map(str, files), *SETTINGS.split(), "--only", "face", "continued", "long"]
        args = puppet_parser().parse_args(asked)
        evaluation = Evaluation(args)
        if others := evaluation.others():
            # Whoever reads the results takes all that is there: never a part of another measuring.
            for path in (folder / LOSS, *others):
                path.unlink(missing_ok=True)
        write_sheet(args, evaluation.run())
        made_by = {"version": LOSS_VERSION, "model": content_digest(whole)[:16]}
        known = json.loads((folder / LOSS).read_text()) if (folder / LOSS).is_file() else {}
        if known.get("made_by") != made_by:
            losses = json.dumps({"made_by": made_by, "loss": self.held_out_loss(whole)})
            write_whole(folder / LOSS, lambda path: path.write_text(losses))

    def held_out_loss(self, whole: Path) -> dict[str, float]:
        """Mean loss per condition; windows, noise and timesteps are the same for every variant and seed."""
        model = Pipeline(whole).model
        objective = Objective(model)
        samples = Samples(PreparedClips(self.data, "test", model.config), LOSS_STAGE, (0, 0), LOSS_SAMPLES)
        losses: dict[str, list[torch.Tensor]] = {name: [] for name in validation_conditions(LOSS_STAGE)}
        with torch.inference_mode():
            for index in range(LOSS_SAMPLES):
                batch, draws = collate([samples[Place(0, index)]])
                for name, found in losses.items():
                    found.append(objective(batch, with_condition(draws, name), False))
        return {name: torch.cat(found).mean().item() for name, found in losses.items()}


def made_laboratory(folder: Path, workers: int) -> Path:
    """Clips and networks at `SIZE` pixels; what is there already stays."""
    Laboratory(folder, SIZE, workers=workers).make(LABORATORY)
    return folder


def started_from(
    shared: dict[str, torch.Tensor], config: LoopyConfig, base: LoopyConfig, seed: int
) -> dict[str, torch.Tensor]:
    """A variant's weights at the start of its own training: those of `shared`, for the rest what the full
    model of that seed has too, and what neither has fresh. The inter-clip layers are silent still."""
    torch.manual_seed(seed)
    known = Loopy(base).state_dict() | {name: weight.float() for name, weight in shared.items()}
    weights = Loopy(config).state_dict()
    for name, weight in weights.items():
        if name.endswith("positions"):  # no chance, but what time a frame stands at
            if name in shared:  # the clip's own frames, which come last
                weight[-len(shared[name]) :] = shared[name]
        elif name in known and known[name].shape == weight.shape:
            weights[name] = known[name]
    return weights


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if args.lab and not (args.lab / METER).is_file():
        raise SystemExit(f"{args.lab} is no whole laboratory; make it with `python -m loopy_model.puppet`.")
    try:
        one, two = args.shared_steps
        steps = {"steps": args.steps, "shared_steps": min(one, two)}
        check_counts({**steps, "threads": args.threads, "workers": args.workers})
        make_folder(args.run_dir)
        torch.set_num_threads(args.threads)
        print(write_report(args.run_dir, Ablations(args).run()))
    except (ValueError, CannotWrite) as error:  # a sentence, as of a directory begun with other settings
        raise SystemExit(str(error)) from error
