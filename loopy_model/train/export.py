"""A trained model as one file, and a whole training as one call."""

from pathlib import Path

import torch

from ..adapter import save_adapter
from ..model import Loopy
from ..weights import Header, ModelCard, read_header, save_checkpoint
from .data import PreparedClips
from .loop import Settings, Trainer
from .lora import adapter_tensors
from .stages import Recipe
from .state import whole_weights


def train(recipe: Recipe, data: Path, run_dir: Path, base: dict[str, torch.Tensor] | None = None) -> Path:
    """Trains what is left of a run on the CPU, without previews -> the result's path.
    Raises ValueError with one sentence where another recipe or other clips began it."""
    clips = (PreparedClips(data, split, recipe.config) for split in ("train", "test"))
    trainer = Trainer(recipe, run_dir, *clips, Settings(), base)
    trainer.run()
    export(trainer, None)
    return result_path(recipe, run_dir)


def result_path(recipe: Recipe, run_dir: Path) -> Path:
    return run_dir / ("adapter.safetensors" if recipe.low_rank else "loopy.safetensors")


def export(trainer: Trainer, base: Path | None) -> Path | None:
    """The result in one file: the averaged model, or the adapter that fine-tuning made."""
    weights, recipe, config = whole_weights(trainer.objective), trainer.recipe, trainer.model.config
    if not trainer.is_main:
        return None
    below = read_header(base).card if base else None
    what, limits = "fine-tuned", "Only as good as those clips."
    if recipe.distillation:
        what, limits = f"in {recipe.distillation.steps} steps", f"{recipe.distillation.advice} {limits}"
    card = ModelCard(
        name=f"{below.name}, {what}" if below else recipe.name,
        trained_on=f"{len(trainer.train.clips)} prepared clips, recipe {recipe.name}"
        + (f", on top of {below.name}: {below.trained_on}" if below else ""),
        limits=f"{limits} Trained by this project's own entry point; ByteDance released no weights.",
        licence=f"that of the base model: {below.licence}" if below else "as chosen by whoever trained it",
    )
    path = result_path(recipe, trainer.run_dir)
    if recipe.low_rank:
        steps = config.diffusion.student_steps
        save_adapter(path, trainer.train.config, card, adapter_tensors(weights), student_steps=steps)
        return path
    model = Loopy(config)
    model.load_state_dict(weights)
    save_checkpoint(path, Header(config, card), {"loopy": model}, torch.float32)
    return path
