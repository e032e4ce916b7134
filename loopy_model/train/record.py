"""The log of a run: `log.jsonl`, one JSON object per line, and TensorBoard where it is installed."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio_to_latents import SOURCES
from .objective import Draws
from .stages import Stage


class Record:
    """Rows of (stage, step). After a resume the rows that will be made again are taken out."""

    def __init__(self, run_dir: Path, stages: tuple[Stage, ...]) -> None:
        self.path, self.stages = run_dir / "log.jsonl", [stage.name for stage in stages]
        self.board_folder = run_dir / "tensorboard"

    def keep_until(self, stage: int, step: int) -> None:
        """Forgets what was logged after the state that a run goes on from; a stage that has no step
        yet will log its beginning again."""
        last = (stage, step if step else -1)
        known = (row for row in read_rows(self.path) if row["stage"] in self.stages)  # no other stage is done
        rows = [row for row in known if self._place(row) <= last]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.path)

    def write(self, stage: Stage, step: int, **values: Any) -> None:
        with open(self.path, "a") as log:
            log.write(json.dumps({"stage": stage.name, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in _flat(values):
                self._board.add_scalar(f"{stage.name}/{name}", value, step)

    @cached_property
    def _board(self) -> Any:
        """TensorBoard's writer, or None where it is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.board_folder))

    def _place(self, row: dict[str, Any]) -> tuple[int, int]:
        return self.stages.index(row["stage"]), row["step"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that a kill cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def mean_per_condition(losses: Tensor, draws: Draws, stage: Stage) -> dict[str, float]:
    """Mean loss (B,) of the samples that had the same conditions; those without a sample are left out."""
    means = {name: losses[which].mean().item() for name, which in _conditions(draws, stage) if which.any()}
    return {name: round(mean, 6) for name, mean in means.items()}


def _conditions(draws: Draws, stage: Stage) -> Iterator[tuple[str, Tensor]]:
    reference, motion, audio = draws.keep_reference, draws.keep_motion, draws.keep_audio
    yield "no reference", ~reference
    if stage.spatial_only:
        yield "all", reference
        return
    yield "all", motion & audio
    yield "no motion frames", reference & ~motion & audio
    yield "no audio", reference & ~audio
    for i, source in enumerate(SOURCES):
        yield f"motion latents from {source}", audio & (draws.source == i)


def with_condition(draws: Draws, name: str) -> Draws:
    """The same draws with everything given but what `name` leaves out; audio-to-latents reads audio."""
    yes, no = torch.ones_like(draws.keep_audio), torch.zeros_like(draws.keep_audio)
    keep = {"keep_reference": yes, "keep_motion": yes, "keep_audio": yes}
    left_out = {
        "all": {},
        "no motion frames": {"keep_motion": no},
        "no audio": {"keep_audio": no},
        "no reference": {"keep_reference": no, "keep_motion": no},
    }[name]
    return Draws(draws.timestep, **keep | left_out, source=torch.zeros_like(draws.source), noise=draws.noise)


def validation_conditions(stage: Stage) -> tuple[str, ...]:
    """All given, and what the stage trains without."""
    dropping = stage.dropping
    names = {"no reference": dropping.reference}
    if not stage.spatial_only:
        names |= {"no audio": dropping.audio, "no motion frames": dropping.motion}
    return ("all", *(name for name, rate in names.items() if rate))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, value
