"""One training loop for every stage, from one process to many nodes; the run directory explains itself."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.optimizer import AcceleratedOptimizer
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from ..model import Loopy
from ..prepare.encoded import BadClip, identity
from ..prepare.encoders import refuse_missing_gpu
from .beginning import Beginning
from .data import Place, PreparedClips, Samples, Schedule, collate, load
from .distill import DistillationObjective
from .lora import add_low_rank, store_frozen_layers
from .objective import Batch, Draws, Objective
from .record import Record, mean_per_condition, validation_conditions, with_condition
from .report import write_report
from .stages import Recipe, Stage, learning_rate_factor
from .state import Average, fingerprint, read_state, restore, snapshot, write_state

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VALIDATION_SAMPLES = 16  # the same clips, noise and timesteps every time


@dataclass(frozen=True)
class Settings:
    """How a run is carried out. Unlike the recipe, none of this changes the result but for rounding."""

    device: str = "cpu"
    workers: int = 0  # processes that read data
    accumulate: int = 1  # pieces that each process cuts its share of a batch into
    mixed_precision: str = "no"  # "bf16" or "fp16"
    checkpointing: bool = False  # make activations again instead of keeping them
    shard: bool = False  # spread weights, gradients and optimiser over the processes (FSDP)
    save_every: int = 200  # steps
    preview_every: int = 1000  # steps

    def __post_init__(self) -> None:
        for name, least in {"workers": 0, "accumulate": 1, "save_every": 1, "preview_every": 0}.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
        refuse_missing_gpu(self.device)


class Trainer:
    """Runs the stages of a recipe. The randomness of a step comes from (seed, stage, step) alone, so a
    resumed run draws what an uninterrupted one would have drawn."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        train: PreparedClips,
        test: PreparedClips,
        settings: Settings = Settings(),
        base: dict[str, Tensor] | None = None,
        preview: Any = None,
    ) -> None:
        self.recipe, self.run_dir, self.train, self.test = recipe, run_dir, train, test
        self.settings, self.preview = settings, preview
        self.stage_index, self.step = 0, 0
        self.accelerator = Accelerator(
            cpu=settings.device == "cpu",
            mixed_precision=settings.mixed_precision,
            # Stage one uses no temporal and no audio layer.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        torch.manual_seed(recipe.seed)
        steps = recipe.distillation.steps if recipe.distillation else 0
        self.model = Loopy(train.config.of_student(steps) if steps else train.config)
        if base is not None:
            self.model.load_state_dict(base)
        # Frozen weights and teachers are not in the state.
        rests_on_base = recipe.low_rank or recipe.distillation
        self.base = fingerprint(base) if base is not None and rests_on_base else None
        if recipe.low_rank:
            add_low_rank(self.model, recipe.low_rank)
            store_frozen_layers(self.model, PRECISIONS[settings.mixed_precision])
        for net in (self.model.reference_unet, self.model.denoising_unet):
            for block in net.blocks():
                block.checkpointing = settings.checkpointing
        self.objective = self._make_objective(base)
        self.wrapped = self._spread(self.objective)
        self.average = Average(self.objective, recipe.ema_decay)
        if self.is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            if not (run_dir / "state.pt").is_file():  # a run that has begun keeps its own
                self._write_recipe()
                (run_dir / "data.json").write_text(json.dumps([train.summary(), test.summary()], indent=2))
            self.record = Record(run_dir, recipe.stages)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def run(self) -> Loopy:
        """Trains what is left; returns the model with the averaged weights."""
        for stage in self.recipe.stages:
            self.schedule(stage, range(0))  # a batch that cannot be cut is refused now, not in days
        state = self._read_state()
        while self.stage_index < len(self.recipe.stages):
            stage = self.recipe.stages[self.stage_index]
            optimizer = self._optimizer_from(state, stage)
            state = None  # as large as all that is trained
            self._run_stage(stage, optimizer)
            self.stage_index, self.step = self.stage_index + 1, 0
            # The next stage starts from the averaged weights; its new layers are still silent.
            self.average.adopt()
            self._save(None)
        return self.model

    def _optimizer_from(self, state: dict[str, Any] | None, stage: Stage) -> AcceleratedOptimizer:
        """That of a stage, with everything as it was where `state` was saved, or new."""
        optimizer = self.make_optimizer(stage)
        if state is not None:
            restore(state, self.objective, self.average, optimizer.optimizer)
            self.accelerator.wait_for_everyone()  # the first one may replace the file at once
        return optimizer

    def _run_stage(self, stage: Stage, optimizer: AcceleratedOptimizer) -> None:
        samples, schedule, batches = self.batches(stage, range(self.step, stage.steps))
        with tqdm(
            total=stage.steps,
            initial=self.step,
            desc=f"stage {stage.name}",
            mininterval=5,
            disable=not self.is_main,
        ) as bar:
            if self.step == 0:
                self._log(stage, validation=self.validate(stage))  # what the stage starts from
                self._show(stage)
            for step in schedule.steps:
                began = time.perf_counter()
                losses, norm = self.train_step(stage, optimizer, samples, schedule, batches)
                self.step = step + 1
                self._log(
                    stage,
                    loss=losses.mean().item(),
                    per_condition=mean_per_condition(losses, samples.draws(step), stage),
                    grad_norm=norm,
                    learning_rate=optimizer.param_groups[0]["lr"],
                    seconds=round(time.perf_counter() - began, 4),
                )
                bar.update()
                bar.set_postfix(loss=f"{losses.mean().item():.4f}", refresh=False)
                self._look_and_save(stage, optimizer)

    def _look_and_save(self, stage: Stage, optimizer: AcceleratedOptimizer) -> None:
        """Held-out loss, previews and the state, where they are due."""

        def is_due(every: int) -> bool:
            return self.step == stage.steps or self.step % every == 0

        if is_due(self.settings.save_every):
            self._log(stage, validation=self._finite(self.validate(stage), stage))
        if self.preview and is_due(self.settings.preview_every):
            self._show(stage)
        if is_due(self.settings.save_every):
            self._save(optimizer)

    # --- one step -------------------------------------------------------------------------------

    def make_optimizer(self, stage: Stage) -> AcceleratedOptimizer:
        parameters = [p for p in self.wrapped.parameters() if p.requires_grad]
        options = {"betas": (0.9, stage.beta2), "weight_decay": self.recipe.weight_decay}
        kind = _adamw_8bit() if self.recipe.optimizer == "adamw8bit" else torch.optim.AdamW
        optimizer = kind(parameters, stage.learning_rate, **options)
        return AcceleratedOptimizer(optimizer, scaler=self.accelerator.scaler)

    def batches(self, stage: Stage, steps: range) -> tuple[Samples, Schedule, Iterator]:
        samples = Samples(self.train, stage, (self.recipe.seed, self.stage_index))
        schedule = self.schedule(stage, steps)
        return samples, schedule, iter(load(samples, schedule, self.settings.workers, self.device))

    def schedule(self, stage: Stage, steps: range) -> Schedule:
        processes = self.accelerator
        return Schedule(
            steps, stage.batch, self.settings.accumulate, processes.process_index, processes.num_processes
        )

    def train_step(
        self,
        stage: Stage,
        optimizer: AcceleratedOptimizer,
        samples: Samples,
        schedule: Schedule,
        batches: Iterator,
    ) -> tuple[Tensor, float]:
        """-> the loss of each sample of the whole batch (B,), and the norm of the gradient."""
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * learning_rate_factor(stage, self.step)
        pieces = []
        for piece in range(schedule.pieces):
            with self._gradients_meet(piece == schedule.pieces - 1):
                losses = self.losses(stage, *_good(next(batches)))
                self.accelerator.backward(losses.mean() / schedule.pieces)
            pieces.append(losses.detach())
        losses = self._gather(torch.stack(pieces))
        self._refuse_losses(losses, stage, samples)
        norm = self._clip(optimizer)
        if self.accelerator.scaler is None and not math.isfinite(norm):  # a scaler leaves such steps out
            raise FloatingPointError(
                f"the gradient of step {self.step + 1} of stage {stage.name} is {norm}; {self._advice()}"
            )
        optimizer.step()
        optimizer.zero_grad()
        self.average.update()
        return losses.cpu(), norm

    def losses(self, stage: Stage, batch: Batch, draws: Draws) -> Tensor:
        """(B,) of the samples of one process."""
        batch, draws = batch.to(self.device), draws.to(self.device)
        with self.accelerator.autocast():
            return self.wrapped(batch, draws, stage.spatial_only).float()

    def _gradients_meet(self, is_last: bool) -> AbstractContextManager:
        """Processes add up their gradients after the last piece of a batch alone."""
        if hasattr(self.wrapped, "set_requires_gradient_sync"):  # sharded, which accelerate does not know
            self.wrapped.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last else self.accelerator.no_sync(self.wrapped)

    def _gather(self, losses: Tensor) -> Tensor:
        """(pieces, b) of each process -> (B,) in the order of the batch."""
        processes = self.accelerator.num_processes
        everywhere = self.accelerator.gather(losses)
        return rearrange(everywhere, "(w a) b -> (a w b)", w=processes)

    def _refuse_losses(self, losses: Tensor, stage: Stage, samples: Samples) -> None:
        """Those that are not finite, by the names of their clips."""
        bad = (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
        if not bad:
            return
        windows = samples.windows(self.step)
        names = ", ".join(str(windows[i]) for i in bad[:4]) + (" and more" if len(bad) > 4 else "")
        raise FloatingPointError(
            f"the loss of step {self.step + 1} of stage {stage.name} is {losses[bad[0]].item()} for {names}; "
            f"look at these clips; {self._advice()}"
        )

    def _advice(self) -> str:
        return (
            f"run the same command, which goes on from the last state in {self.run_dir}, or lower the learning "
            "rate in another --run-dir."
        )

    def _finite(self, validation: dict[str, float], stage: Stage) -> dict[str, float]:
        """The same; weights that make nothing of held-out clips are not kept."""
        for name, loss in validation.items():
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the held-out loss ({name}) after step {self.step} of stage {stage.name} is {loss}; "
                    f"lower the learning rate in another --run-dir (the last state in {self.run_dir} is from before)."
                )
        return validation

    def _clip(self, optimizer: AcceleratedOptimizer) -> float:
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(optimizer.optimizer)
        norm = nn.utils.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip_norm)
        return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()

    # --- held-out clips -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, stage: Stage) -> dict[str, float]:
        """Loss of the averaged model on held-out clips: the same samples and noise under each condition."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        count = math.ceil(VALIDATION_SAMPLES / processes) * processes
        # Comparable from stage to stage, but for single frames and clips.
        plain = replace(stage, face_weight=1.0, motion_noise=0.0, timestep_power=1.0)
        samples = Samples(self.test, plain, (self.recipe.seed, 0), batch=count)
        losses: dict[str, list[Tensor]] = {name: [] for name in validation_conditions(stage)}
        with self.average.applied():
            for index in range(rank, count, processes):
                batch, draws = _good(collate([samples[Place(0, index)]]))
                for name, found in losses.items():
                    found.append(self.losses(stage, batch, with_condition(draws, name)))
        means = {name: self.accelerator.gather(torch.cat(found)).mean() for name, found in losses.items()}
        return {name: mean.item() for name, mean in means.items()}

    def _show(self, stage: Stage) -> None:
        if self.preview is None or stage.spatial_only or self.settings.shard:
            return
        if self.is_main:
            with self.average.applied(), self.accelerator.autocast():
                metrics = self.preview(self.model, self.run_dir / "previews", f"{stage.name}-{self.step:06d}")
            if metrics:
                self._log(stage, **metrics)
        self.accelerator.wait_for_everyone()

    # --- what a run keeps -----------------------------------------------------------------------

    def _log(self, stage: Stage, **values: Any) -> None:
        if self.is_main:
            self.record.write(stage, self.step, **values)

    def _save(self, optimizer: AcceleratedOptimizer | None) -> None:
        state = {"stage": self.stage_index, "step": self.step, "begun": self._beginning().to_json()}
        state |= snapshot(self.objective, self.average, optimizer and optimizer.optimizer)
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.is_main:
            write_state(self.run_dir / "state.pt", state)
            write_report(self.run_dir)
        self.accelerator.wait_for_everyone()

    def _write_recipe(self) -> None:
        (self.run_dir / "recipe.json").write_text(json.dumps(self.recipe.to_dict(), indent=2))

    def _read_state(self) -> dict[str, Any] | None:
        state = read_state(self.run_dir / "state.pt")
        self.stage_index, self.step = (state["stage"], state["step"]) if state else (0, 0)
        self._refuse_other_places()
        if state is None:
            if self.is_main:
                self.record.keep_until(0, 0)
            return None
        begun = Beginning.from_json(state["begun"])
        begun.refuse_another(
            self._beginning(), self.stage_index + (self.step > 0), self.run_dir, self.train.data
        )
        if self.is_main:
            self._write_recipe()  # stages that have not begun may be other ones now
            self.record.keep_until(self.stage_index, self.step)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if "optimizer" not in state:
            restore(state, self.objective, self.average, None)
            return None
        return state

    def _refuse_other_places(self) -> None:
        """Each process has read the state itself; from different ones they would wait for each other forever."""
        place = torch.tensor([[self.stage_index, self.step]], device=self.device)
        if len(self.accelerator.gather(place).unique(dim=0)) > 1:
            raise ValueError(
                f"the processes found different states in {self.run_dir}; --run-dir must lie on a disk that all "
                "nodes share."
            )

    def _beginning(self) -> Beginning:
        encoders = list(identity(self.train.encoders))
        return Beginning(self.recipe, self.train.fingerprint(), self.base, encoders)

    def _make_objective(self, base: dict[str, Tensor] | None) -> Objective:
        if self.recipe.distillation is None:
            return Objective(self.model)
        teacher = Loopy(self.train.config)
        teacher.load_state_dict(base)
        teacher.requires_grad_(False)
        store_frozen_layers(teacher, PRECISIONS[self.settings.mixed_precision])
        teacher.to(self.device, memory_format=torch.channels_last)
        return DistillationObjective(self.model, teacher, self.recipe.distillation)

    def _spread(self, objective: Objective) -> nn.Module:
        """The objective on this process's device, wrapped for several processes."""
        objective.to(self.device)
        if self.accelerator.num_processes == 1 or not self.settings.shard:
            objective.to(memory_format=torch.channels_last)  # which shards cannot have
            return self.accelerator.prepare_model(objective)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.accelerator.num_processes,))
        return fully_shard(objective, mesh=mesh, reshard_after_forward=False)


def _good(read: tuple[Batch, Draws] | BadClip) -> tuple[Batch, Draws]:
    if isinstance(read, BadClip):
        raise read
    return read


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("the adamw8bit optimiser needs bitsandbytes: pip install bitsandbytes") from error
    return AdamW8bit
