"""One training loop for every stage; the run directory explains itself and resumes."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..diffusion import NoiseSchedule
from ..model import Loopy
from .data import PreparedClips
from .objective import draw, loss_per_sample
from .stages import Recipe, Stage

VALIDATION_CLIPS = 16


class Trainer:
    """Runs the stages of a recipe. All randomness of a step comes from (seed, stage, step), so a
    resumed run draws what an uninterrupted one would have drawn."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        train: PreparedClips,
        test: PreparedClips,
        device: str = "cpu",
        save_every: int = 200,
    ) -> None:
        self.recipe, self.run_dir, self.train, self.test = recipe, run_dir, train, test
        self.device, self.save_every = device, save_every
        self.schedule = NoiseSchedule(recipe.config.diffusion)
        torch.manual_seed(recipe.seed)
        self.model = Loopy(recipe.config).to(device, memory_format=torch.channels_last)
        self.ema = AveragedModel(self.model, multi_avg_fn=_warm_average(recipe.ema_decay))
        self.stage_index, self.step = 0, 0
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2))

    def run(self) -> Loopy:
        """Trains what is left and returns the averaged model."""
        state = self._load()
        while self.stage_index < len(self.recipe.stages):
            self._run_stage(self.recipe.stages[self.stage_index], state)
            self.stage_index, self.step, state = self.stage_index + 1, 0, None
            # The next stage starts from the averaged weights; its new layers are still silent.
            self.model.load_state_dict(self.ema.module.state_dict())
            self.ema.n_averaged.zero_()
            self._save(None)
        return self.ema.module

    def _run_stage(self, stage: Stage, state: dict[str, Any] | None) -> None:
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            stage.learning_rate,
            betas=(0.9, stage.beta2),
            weight_decay=self.recipe.weight_decay,
        )
        if state and state["optimizer"]:
            optimizer.load_state_dict(state["optimizer"])
        bar = tqdm(total=stage.steps, initial=self.step, desc=f"stage {stage.name}", mininterval=5)
        while self.step < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * learning_rate_factor(stage, self.step)
            began = time.perf_counter()
            loss, norm = self._train_step(stage, optimizer)
            self.step += 1
            bar.update()
            self._log(stage, loss=loss, grad_norm=norm, seconds=time.perf_counter() - began)
            if self.step % self.save_every == 0 or self.step == stage.steps:
                self._log(stage, validation=self.validate(stage))
                self._save(optimizer)
        bar.close()

    def _train_step(self, stage: Stage, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        loss = self._losses(self.model, stage, self.train, stage.batch, self.step).mean()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss of step {self.step} of stage {stage.name} is {loss.item()}; "
                f"lower the learning rate and start again from {self.run_dir}."
            )
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        optimizer.step()
        self.ema.update_parameters(self.model)
        return loss.item(), norm.item()

    def _losses(self, model: Loopy, stage: Stage, clips: PreparedClips, batch: int, step: int) -> Tensor:
        seed = (self.recipe.seed, self.stage_index, step)
        frames = 1 if stage.spatial_only else self.recipe.config.clip.frames
        data = clips.draw(batch, frames, np.random.default_rng(seed))
        words = np.random.SeedSequence(seed).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
        draws = draw(data.clip, self.recipe.config.diffusion.train_steps, stage.dropping, generator)
        data, draws = (_to(x, self.device) for x in (data, draws))
        return loss_per_sample(model, self.schedule, data, draws, stage.spatial_only)

    @torch.no_grad()
    def validate(self, stage: Stage) -> float:
        """Loss of the averaged model on held-out clips; the same clips, noise and drops every time."""
        return self._losses(self.ema.module, stage, self.test, VALIDATION_CLIPS, 10**9).mean().item()

    def _log(self, stage: Stage, **values: float) -> None:
        with open(self.run_dir / "log.jsonl", "a") as log:
            log.write(json.dumps({"stage": stage.name, "step": self.step, **values}) + "\n")

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        state = {
            "stage": self.stage_index,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer and optimizer.state_dict(),
        }
        partial = self.run_dir / "state.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.run_dir / "state.pt")  # a kill while saving leaves the last good state

    def _load(self) -> dict[str, Any] | None:
        path = self.run_dir / "state.pt"
        if not path.is_file():
            return None
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.stage_index, self.step = state["stage"], state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        return state


def learning_rate_factor(stage: Stage, step: int) -> float:
    """Linear warm-up, constant, then half a cosine down to `final`."""
    progress = step / stage.steps
    rise = min(1.0, (step + 1) / stage.warmup)
    if progress <= stage.constant:
        return rise
    fall = (progress - stage.constant) / (1 - stage.constant)
    return rise * (stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * fall)))


def _warm_average(decay: float) -> Callable[..., None]:
    """Exponential moving average whose memory grows with the run up to `decay`."""

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, n / (n + 20)))

    return average


def _to(values: Any, device: str) -> Any:
    """A dataclass of tensors, on `device`."""
    if device == "cpu":
        return values
    return type(values)(**{k: v.to(device) for k, v in vars(values).items()})
