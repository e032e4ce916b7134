"""What to train and how, as data: the paper's two stages (3.4), the puppet's four, fine-tuning, distillation."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import LOOPY, PUPPET, LoopyConfig
from ..guidance import Guidance
from .distill import Distillation
from .objective import ConditionDropping

OPTIMIZER = Literal["adamw", "adamw8bit"]


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    batch: int  # samples per step, over all processes and accumulated pieces
    learning_rate: float
    spatial_only: bool  # stage one: single frames, no temporal layers, no audio
    dropping: ConditionDropping = ConditionDropping()
    warmup: int = 50  # steps of linear learning-rate rise
    constant: float = 1.0  # share of the steps before the cosine decay
    final: float = 0.03  # learning rate at the end, as a share
    beta2: float = 0.999
    # Of the drawn timesteps: 1 is uniform, as the paper's; below it, noisy ones are drawn more often.
    timestep_power: float = 1.0
    face_weight: float = 1.0  # of the squared error where eyes and mouth are; 1: as everywhere, the paper's
    motion_noise: float = 0.0  # most noise on motion frames, in the latents' deviations; the paper's is 0

    def __post_init__(self) -> None:
        if not self.face_weight > 0:
            raise ValueError(f"stage {self.name}: face_weight is {self.face_weight}; it must be above 0.")
        if self.motion_noise < 0:
            raise ValueError(f"stage {self.name}: motion_noise is {self.motion_noise}; it must be 0 or more.")
        if not self.timestep_power > 0:
            raise ValueError(
                f"stage {self.name}: timestep_power is {self.timestep_power}; it must be above 0."
            )
        if not self.learning_rate > 0:
            raise ValueError(f"stage {self.name}: a learning rate of {self.learning_rate} trains nothing.")
        for name in ("steps", "batch", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"stage {self.name}: {name} is {getattr(self, name)}; it must be at least 1."
                )


def learning_rate_factor(stage: Stage, step: int) -> float:
    """Linear warm-up, constant, then half a cosine down to `final`."""
    progress = step / stage.steps
    rise = min(1.0, (step + 1) / stage.warmup)
    if progress <= stage.constant:
        return rise
    fall = (progress - stage.constant) / (1 - stage.constant)
    return rise * (stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * fall)))


@dataclass(frozen=True)
class Recipe:
    """What to train, how, and from which seed."""

    name: str
    config: LoopyConfig | None  # of a model from nothing; one with a base keeps the base's
    stages: tuple[Stage, ...]
    seed: int = 0
    ema_decay: float = 0.9999
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    optimizer: OPTIMIZER = "adamw"
    low_rank: int = 0  # rank of the adapters on the spatial layers; 0 trains them in full
    distillation: Distillation | None = None  # the base model is the teacher; None: the clips alone teach

    def __post_init__(self) -> None:
        if self.low_rank < 0:
            raise ValueError(f"recipe {self.name}: low_rank is {self.low_rank}; give 0 for none, or more.")
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"recipe {self.name} needs stages of different names, not {names}.")
        if self.optimizer not in get_args(OPTIMIZER):
            known = ", ".join(get_args(OPTIMIZER))
            raise ValueError(f"recipe {self.name}: there is no optimizer {self.optimizer}; choose {known}.")
        if self.distillation and any(stage.spatial_only for stage in self.stages):
            raise ValueError(f"recipe {self.name} distils, so none of its stages can be spatial_only.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Inverse of `to_dict`, also after JSON turned tuples into lists; unknown names raise TypeError."""
        stages = [
            Stage(**s | {"dropping": ConditionDropping(**s.get("dropping", {}))}) for s in values["stages"]
        ]
        config = values.get("config") and LoopyConfig.from_dict(values["config"])
        distillation = values.get("distillation") and Distillation(**values["distillation"])
        return cls(**values | {"stages": tuple(stages), "config": config, "distillation": distillation})


def read_recipe(name: str) -> Recipe:
    """One of `RECIPES`, or a JSON file like the `recipe.json` of a run. Raises ValueError with a sentence."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no recipe {name}; choose {', '.join(RECIPES)}, or give a JSON file.")
    try:
        return Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{name} is not a recipe ({error}); start from the recipe.json of a run (`--dry-run` writes one)."
        ) from error


STAGE_ONE = Stage("one", steps=30_000, batch=24, learning_rate=1e-5, spatial_only=True)
STAGE_TWO = replace(STAGE_ONE, name="two", spatial_only=False)
"""AdamW 1e-5 and batch 24 are the paper's; it gives days (4 each on 24 A100), not steps."""

PUPPET_DROPPING = ConditionDropping(audio_without_reference=0.5)
"""At the paper's rates e_base (no reference, no audio) would be 1.5 % of so few samples."""

PUPPET_RHYTHM = replace(PUPPET_DROPPING, motion=0.25)
"""Rhythms are learnt last, only from samples that keep their motion frames, and from the noisiest ones."""

PUPPET_FACE = 3.0
"""A blink is 3 % of what changes in a video."""


def rhythms(name: str, steps: int, learning_rate: float, **more: float) -> Stage:
    """A stage of the puppet that comes after the paper's two."""
    return Stage(
        name,
        steps,
        batch=8,
        learning_rate=learning_rate,
        spatial_only=False,
        dropping=PUPPET_RHYTHM,
        beta2=0.99,
        face_weight=PUPPET_FACE,
        motion_noise=0.2,
        **more,
    )


RECIPES = {
    "loopy": Recipe("loopy", LOOPY, (STAGE_ONE, STAGE_TWO)),
    "puppet": Recipe(
        "puppet",
        PUPPET,
        (
            Stage("one", 2000, 32, 1.5e-3, True, PUPPET_DROPPING, constant=0.6, beta2=0.99),
            Stage("two", 6000, 8, 1.0e-3, False, PUPPET_DROPPING, constant=0.4, beta2=0.99),
            rhythms("three", 8000, 8e-4, timestep_power=0.25, constant=0.5, final=0.25),
            rhythms("four", 500, 2e-4, timestep_power=0.5, constant=0.2, warmup=1),
        ),
        ema_decay=0.998,
    ),
    # One consumer card: adapters on the spatial layers, the temporal and audio layers in full.
    "finetune": Recipe(
        "finetune",
        None,
        (replace(STAGE_TWO, name="fine-tune", steps=2000, batch=4, learning_rate=5e-5, constant=0.5),),
        ema_decay=0.998,
        low_rank=16,
    ),
    # The base model in few steps without guidance, as an adapter.
    "distill": Recipe(
        "distill",
        None,
        (
            Stage(
                "distill",
                steps=1000,
                batch=8,
                learning_rate=2e-4,
                spatial_only=False,
                dropping=ConditionDropping(audio=0, reference=0, motion=0.25),
                constant=0.5,
                beta2=0.99,
            ),
        ),
        ema_decay=0.998,
        low_rank=32,
        distillation=Distillation(4, *Guidance()),  # the sampler's own ratios
    ),
}
