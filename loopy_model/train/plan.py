"""What a run will do and need, before it begins: `--dry-run`.

Everything here is counted from the recipe and the model's shapes, on torch's meta device, so that it
works for a model that does not fit this machine; only the time per step is measured.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..config import LoopyConfig
from ..layers import Attention
from ..model import Loopy
from .data import PreparedClips
from .distill import Distillation, DistillationObjective
from .loop import PRECISIONS, Settings, Trainer
from .lora import add_low_rank
from .objective import Batch, Draws, Objective
from .stages import Recipe, Stage

GB = 1e9
TRIAL_STEPS = 3


@dataclass(frozen=True)
class Cost:
    """What one sample costs, forward and backward."""

    flop: int
    activations: int  # bytes that are kept for the gradients, float32


def describe(
    recipe: Recipe, config: LoopyConfig, train: PreparedClips, test: PreparedClips, piece: dict
) -> str:
    """The plan as a text; `piece` says how many samples pass through the net at once, by stage."""
    model = skeleton(config, recipe.low_rank)
    lines = [f"recipe {recipe.name}, seed {recipe.seed}", *_data(train, test), "", *_parameters(model), ""]
    for stage in recipe.stages:
        lines += [*_stage(stage, recipe, config, model, piece[stage.name]), ""]
    return "\n".join(lines)


def skeleton(config: LoopyConfig, low_rank: int = 0, checkpointing: bool = False) -> Loopy:
    """The model without memory: shapes only."""
    with torch.device("meta"):
        model = Loopy(config)
        if low_rank:
            add_low_rank(model, low_rank)
    for net in (model.reference_unet, model.denoising_unet):
        for block in net.blocks():
            block.checkpointing = checkpointing
    return model


def _data(*splits: PreparedClips) -> list[str]:
    line = "{split:5} {clips:6} clips, {minutes:8.1f} minutes, {silent} without sound (stage one only)"
    return [line.format(**clips.summary()) for clips in splits]


def _parameters(model: Loopy) -> list[str]:
    total, trained = Counter(), Counter()
    for name, parameter in model.named_parameters():
        total[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() * parameter.requires_grad
    rows = [*total, "all"]
    total["all"], trained["all"] = total.total(), trained.total()
    return [f"{'parameters':34}{'all':>14}{'trained':>14}"] + [
        f"{row:34}{total[row]:14,}{trained[row]:14,}" for row in rows
    ]


def part_of(parameter: str) -> str:
    """The box of the paper's figure 2 that a parameter belongs to."""
    net, *rest = parameter.split(".")
    if net == "reference_unet":
        return "reference net"
    if net != "denoising_unet":
        return "audio-to-latents" if net == "audio_to_latents" else "audio projection"
    layers = {
        "inter_modules": "inter-clip temporal layers",
        "audio_modules": "audio cross-attention",
        "intra_modules": "intra-clip temporal layers",
    }
    return "denoising net, " + next((layers[part] for part in rest if part in layers), "spatial layers")


def _stage(stage: Stage, recipe: Recipe, config: LoopyConfig, model: Loopy, piece: int) -> list[str]:
    unit = "single frames" if stage.spatial_only else f"{config.clip.frames}-frame clips"
    cost = cost_of(config, stage, recipe.low_rank, False, recipe.distillation)
    slim = cost_of(config, stage, recipe.low_rank, True, recipe.distillation)
    fixed = fixed_memory(model, recipe)
    return [
        f"stage {stage.name}: {stage.steps} steps of {stage.batch} {unit} = {stage.steps * stage.batch:,} samples, "
        f"learning rate {stage.learning_rate:g}",
        f"  {cost.flop / 1e12:.3g} TFLOP a sample, {cost.flop * stage.batch * stage.steps / 1e15:.3g} PFLOP in all "
        f"({slim.flop / cost.flop - 1:.0%} more with --checkpointing)",
        f"  memory in float32: {fixed / GB:.2f} GB for weights, gradients, optimiser and average, and "
        f"{piece} x {cost.activations / GB:.2f} GB for activations "
        f"({piece} x {slim.activations / GB:.2f} GB with --checkpointing)",
    ]


def fixed_memory(model: Loopy, recipe: Recipe, precision: torch.dtype = torch.float32) -> int:
    """Bytes that do not depend on the batch: weights, frozen ones and those of a teacher in `precision`, and
    per trained weight its gradient, two moments and its average."""
    everything = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    only_read = everything - trained + (everything if recipe.distillation else 0)
    moments = 2 if recipe.optimizer == "adamw8bit" else 8
    return precision.itemsize * only_read + trained * (4 + 4 + moments + 4)


def cost_of(
    config: LoopyConfig,
    stage: Stage,
    low_rank: int = 0,
    checkpointing: bool = False,
    distillation: Distillation | None = None,
) -> Cost:
    """Counted on shapes alone; nothing is dropped, which is the dearest case."""
    model = skeleton(config, low_rank, checkpointing)
    objective = (
        DistillationObjective(model, skeleton(config), distillation) if distillation else Objective(model)
    )
    with FlopCounterMode(display=False) as counter:
        objective(*_shapes(config, stage, 1), stage.spatial_only).sum().backward()
    return Cost(counter.get_total_flops(), _kept(objective, config, stage))


def _kept(objective: Objective, config: LoopyConfig, stage: Stage) -> int:
    """Bytes that the forward pass keeps for the gradients. Attention is counted as fused, which keeps
    no table of weights. With checkpointing the pieces being made again come on top; the largest is small."""
    kept: dict[int, int] = {}
    weights = {id(p) for p in objective.parameters()}

    def note(tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in weights:
            kept[id(base)] = base.numel() * base.element_size()
            alive.append(base)
        return tensor

    alive: list[Tensor] = []  # an id is only unique while its tensor lives
    for module in objective.modules():
        if isinstance(module, Attention):
            module.attend = _fused
    with saved_tensors_hooks(note, lambda tensor: tensor):
        objective(*_shapes(config, stage, 1), stage.spatial_only)
    return sum(kept.values())


class _Fused(torch.autograd.Function):
    """Attention as a fused kernel keeps it: its inputs and its output."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ANN001
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def _fused(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    return _Fused.apply(q, k, v)


def _shapes(config: LoopyConfig, stage: Stage, count: int) -> tuple[Batch, Draws]:
    """A batch of `count` samples without values, all conditions given."""
    clip, audio, latents = config.clip, config.audio, config.latent_shape
    frames = 1 if stage.spatial_only else clip.frames

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    batch = Batch(
        clip=meta(count, frames, *latents),
        reference=meta(count, *latents),
        motion=meta(count, clip.motion_frames, *latents),
        present=meta(count, clip.motion_frames, dtype=torch.bool),
        windows=meta(count, frames, clip.audio_window, audio.layers, audio.width),
        movement=meta(count),
        expression=meta(count),
    )
    draws = Draws(
        timestep=torch.zeros(count).long(),
        keep_audio=meta(count, dtype=torch.bool),
        keep_reference=meta(count, dtype=torch.bool),
        keep_motion=torch.ones(count, dtype=torch.bool),  # it and the source choose rows: real values
        source=torch.zeros(count).long(),
        noise=meta(count, frames, *latents),
    )
    return batch, draws


def lacking(
    recipe: Recipe, config: LoopyConfig, settings: Settings, piece: dict, processes: int = 1
) -> str | None:
    """A sentence when the run cannot fit this machine, so that nothing has to fail to show it."""
    precision = PRECISIONS[settings.mixed_precision]
    fixed = fixed_memory(skeleton(config, recipe.low_rank), recipe, precision)
    kept = max(
        piece[stage.name]
        * cost_of(config, stage, recipe.low_rank, settings.checkpointing, recipe.distillation).activations
        for stage in recipe.stages
    )
    needed = fixed / (processes if settings.shard else 1) + kept * precision.itemsize / 4
    there = torch.cuda.mem_get_info()[0] if settings.device == "cuda" else _free_memory()
    if needed <= there:
        return None
    return (
        f"this run needs about {needed / GB:.1f} GB, {there / GB:.1f} GB are free here: steps are "
        "not measured. --checkpointing, --accumulate, --mixed-precision, --shard and --low-rank need less."
    )


def _free_memory() -> int:
    report = Path("/proc/meminfo")
    if not report.is_file():
        return sys.maxsize  # other systems do not say
    lines = dict(line.split(":") for line in report.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def measured(trainer: Trainer) -> str:
    """A few real steps of every stage with the trainer's own data, thrown away afterwards."""
    lines = []
    for index, stage in enumerate(trainer.recipe.stages):
        trainer.stage_index, trainer.step = index, 0
        seconds = trial(trainer, stage)
        left = seconds * stage.steps / 3600
        lines.append(
            f"stage {stage.name}: {seconds:.3g} s a step (mean of {TRIAL_STEPS} after one to warm up), "
            f"{left:.3g} h for {stage.steps} steps; peak memory so far {peak_memory(trainer.device) / GB:.2f} GB"
        )
    return "\n".join(lines)


def trial(trainer: Trainer, stage: Stage) -> float:
    """Seconds per step. The first one is not counted: it allocates and compiles."""
    optimizer = trainer.make_optimizer(stage)
    parts = trainer.batches(stage, range(TRIAL_STEPS + 1))
    trainer.train_step(stage, optimizer, *parts)
    began = time.perf_counter()
    for _ in range(TRIAL_STEPS):
        trainer.train_step(stage, optimizer, *parts)
    return (time.perf_counter() - began) / TRIAL_STEPS


def peak_memory(device: torch.device | str) -> int:
    """Bytes: of the card, or of this process on a CPU; 0 where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's peak is at least that of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
