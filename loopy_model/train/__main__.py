"""`python -m loopy_model.train`: train or fine-tune; the same command resumes.

One process as it is; several with `accelerate launch -m loopy_model.train ...` (or torchrun).
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..guidance import Guidance
from ..model import Loopy
from ..prepare.encoded import BadClip
from ..weights import (
    NotALoopyModel,
    load_strictly,
    load_tensors,
    read_header,
)
from .data import PreparedClips
from .distill import Distillation
from .export import export, result_path
from .loop import Settings, Trainer
from .plan import describe, lacking, measured
from .preview import Preview, mouth_reader
from .report import write_report
from .stages import RECIPES, Recipe, read_recipe


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loopy_model.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="data folder that `python -m loopy_model.prepare` filled")
    add("--run-dir", type=Path, required=True, help="state, log, previews and result go here")
    add(
        "--recipe",
        default="loopy",
        help=f"{', '.join(RECIPES)}, or a JSON file (default: loopy, the paper's)",
    )
    add("--base", type=Path, help="checkpoint to start from; `finetune` and `distill` need one")
    add("--dry-run", action="store_true", help="print the plan, measure a few steps, and stop")
    what = parser.add_argument_group("what to train (on top of the recipe)").add_argument
    what("--steps", type=int, nargs="+", help="steps of each stage")
    what("--batch", type=int, nargs="+", help="samples per step of each stage, over all processes")
    what("--learning-rate", type=float, nargs="+", help="peak learning rate of each stage")
    what("--low-rank", type=int, help="rank of the adapters on the spatial layers; 0 trains everything")
    what("--optimizer", choices=("adamw", "adamw8bit"), help="adamw8bit needs bitsandbytes")
    what("--seed", type=int, help="of all draws and new weights")
    few = parser.add_argument_group("few-step distillation (recipe distill)").add_argument
    few("--student-steps", type=int, metavar="STEPS", help="in which the result samples (4)")
    few("--guidance", type=float, nargs=2, metavar=("AUDIO", "REF"), help="ratios of the teacher (5 3)")
    how = parser.add_argument_group("how to carry it out").add_argument
    how(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        choices=("cuda", "cpu"),
        help="cuda if there is one",
    )
    how("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    how("--workers", type=int, default=0, help="processes that read data (0: none besides this one)")
    how("--accumulate", type=int, default=1, help="pieces that a process cuts its share of a batch into")
    how("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="for the nets (no: float32)")
    how("--checkpointing", action="store_true", help="make activations again instead of keeping them")
    how("--shard", action="store_true", help="spread weights, gradients and optimiser over the processes")
    how("--save-every", type=int, default=200, metavar="STEPS", help="state and held-out loss (200)")
    how(
        "--preview-every",
        type=int,
        default=1000,
        metavar="STEPS",
        help="preview clips and lip sync (1000; 0: none)",
    )
    how("--vae", type=Path, help="for previews (default: the VAE that encoded the clips)")
    how(
        "--lips",
        default="none",
        help="what reads lips in previews: meter (drawn faces), facemesh, dwpose:..., none",
    )
    return parser


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe with what the command line changes in it."""
    recipe = read_recipe(args.recipe)
    stages = list(recipe.stages)
    for name in ("steps", "batch", "learning_rate"):
        values = getattr(args, name)
        if values is None:
            continue
        if len(values) != len(stages):
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} has {len(values)} values, the recipe {len(stages)} stages; give one each."
            )
        stages = [replace(stage, **{name: value}) for stage, value in zip(stages, values)]
    given = {name: getattr(args, name) for name in ("low_rank", "optimizer", "seed")}
    given["distillation"] = chosen_distillation(args, recipe)
    return replace(recipe, stages=tuple(stages), **{k: v for k, v in given.items() if v is not None})


def chosen_distillation(args: argparse.Namespace, recipe: Recipe) -> Distillation | None:
    ratios = args.guidance or (None, None)
    given = {"steps": args.student_steps, "audio_ratio": ratios[0], "ref_ratio": ratios[1]}
    given = {name: value for name, value in given.items() if value is not None}
    if given and recipe.distillation is None:
        raise ValueError(f"recipe {recipe.name} does not distil; leave --student-steps and --guidance out.")
    return recipe.distillation and replace(recipe.distillation, **given)


def settings_of(args: argparse.Namespace) -> Settings:
    names = ("device", "workers", "accumulate", "mixed_precision", "checkpointing", "shard")
    return Settings(
        **{name: getattr(args, name) for name in names},
        save_every=args.save_every,
        preview_every=args.preview_every,
    )


def with_base(recipe: Recipe, base: Path | None) -> tuple[Recipe, dict[str, torch.Tensor] | None]:
    """The recipe with the configuration of the base model, if there is one, and the base's weights in float32."""
    if base is None:
        if recipe.config is None or recipe.low_rank or recipe.distillation:
            raise ValueError(f"recipe {recipe.name} trains on top of a model; give it with --base.")
        return recipe, None
    header = read_header(base)
    weights = {key: tensor.float() for key, tensor in load_tensors(base).get("loopy", {}).items()}
    with torch.device("meta"):  # the check takes no memory
        load_strictly(Loopy(header.config), weights, base, assign=True)
    return replace(recipe, config=header.config), weights


def make_preview(
    args: argparse.Namespace, test: PreparedClips, distillation: Distillation | None
) -> Preview | None:
    """None when none is wanted, or there is no VAE to show anything with."""
    from ..prepare.encoders import load_vae

    if args.preview_every == 0:
        return None

    path = args.vae
    if path is None:
        path = Path(test.encoders["vae"]["path"])
        if not path.exists():
            _say(f"no previews: the VAE that encoded the clips is not at {path} any more; give it with --vae")
            return None
    vae = load_vae(path, args.device) if _is_main() else None
    # A student samples in its own way, whether it is being made or trained further.
    own = distillation.steps if distillation else test.config.diffusion.student_steps
    few = {"steps": own, "guidance": Guidance(1.0, 1.0)} if own else {}
    return Preview(test, vae, mouth_reader(args.lips), device=args.device, **few)


def _is_main() -> bool:
    """Of several processes, the first; known before any of them is connected."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    """Once, however many processes there are, and before whatever else is said, also into a pipe."""
    if _is_main():
        print(text, flush=True)


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe, base = with_base(chosen_recipe(args), args.base)
    if args.base and args.base.resolve() == result_path(recipe, args.run_dir).resolve():
        raise ValueError(f"--run-dir {args.run_dir} would replace {args.base}; give another folder.")
    train, test = (PreparedClips(args.data, split, recipe.config) for split in ("train", "test"))
    settings = settings_of(args)
    for stage in recipe.stages:
        train.refuse_without_clips_for(stage)
        test.refuse_without_clips_for(stage)
    if args.dry_run:
        return dry_run(args, recipe, train, test, settings, base)
    trainer = Trainer(
        recipe, args.run_dir, train, test, settings, base, make_preview(args, test, recipe.distillation)
    )
    del base  # as large as the model, which has copied it
    trainer.run()
    path = export(trainer, args.base)
    if path is not None:
        write_report(args.run_dir)
        print(f"done: {path}\nreport: {args.run_dir / 'report.md'}")


def dry_run(
    args: argparse.Namespace,
    recipe: Recipe,
    train: PreparedClips,
    test: PreparedClips,
    settings: Settings,
    base: dict[str, torch.Tensor] | None,
) -> None:
    """The plan, then a few steps, of which nothing stays but the recipe and the sizes of the data."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    pieces = {s.name: max(1, s.batch // (settings.accumulate * processes)) for s in recipe.stages}
    _say(describe(recipe, recipe.config, train, test, pieces))
    if sentence := lacking(recipe, recipe.config, settings, pieces, processes):
        _say(sentence)
    else:
        _say(measured(Trainer(recipe, args.run_dir, train, test, settings, base)))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"cannot write or read {error.filename}: {error.strerror}; check the path and its permissions."
    return str(error)


def main() -> None:
    try:
        args = build_parser().parse_args()
        run(args)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from the last state in {args.run_dir}.", file=sys.stderr)
        raise SystemExit(130) from None
    except (BadClip, NotALoopyModel, FloatingPointError, ValueError, OSError) as error:
        raise SystemExit(_sentence(error)) from error


if __name__ == "__main__":
    main()
