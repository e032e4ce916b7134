"""`python -m loopy_model.train`: both stages of the paper, resumable by the same command."""

import argparse
from pathlib import Path

import torch

from ..weights import Header, ModelCard, save_checkpoint
from .data import PreparedClips
from .loop import Trainer
from .stages import RECIPES, Recipe


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loopy_model.train", description=__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="puppet", help="what to train (default: puppet)")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="prepared clips: a folder with train/ and test/ (python -m loopy_model.puppet makes it)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        required=True,
        help="state, log and result go here; the same command resumes from here",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser


def plan(recipe: Recipe, train: PreparedClips) -> str:
    """What a run will do, in a few lines."""
    videos, frames = train.latents.shape[:2]
    lines = [f"recipe {recipe.name}, seed {recipe.seed}: {videos} videos of {frames} frames"]
    for stage in recipe.stages:
        unit = "single frames" if stage.spatial_only else f"{recipe.config.clip.frames}-frame clips"
        lines.append(
            f"stage {stage.name}: {stage.steps} steps of {stage.batch} {unit}, "
            f"learning rate {stage.learning_rate:g}, {stage.dropping}"
        )
    return "\n".join(lines)


def export(trainer: Trainer, path: Path) -> None:
    """The averaged model alone; `python -m loopy_model.puppet --only pack` adds encoder and VAE."""
    card = ModelCard(
        name=trainer.recipe.name,
        trained_on=f"{len(trainer.train.latents)} prepared clips, recipe {trainer.recipe.name}",
        limits="Only as good as those clips. Trained by this project's own entry point; ByteDance released no weights.",
        licence="as chosen by whoever trained it",
    )
    save_checkpoint(path, Header(trainer.recipe.config, card), {"loopy": trainer.ema.module}, torch.float32)


def main() -> None:
    args = build_parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = RECIPES[args.recipe]
    train, test = (PreparedClips(args.data / split, recipe.config) for split in ("train", "test"))
    print(plan(recipe, train))
    if args.dry_run:
        return
    trainer = Trainer(recipe, args.run_dir, train, test, args.device, args.save_every)
    trainer.run()
    export(trainer, args.run_dir / "loopy.safetensors")
    print(f"done: {args.run_dir / 'loopy.safetensors'}")


if __name__ == "__main__":
    main()
