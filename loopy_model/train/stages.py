"""The two training stages of the paper (3.4) as data, for both presets."""

from dataclasses import dataclass, replace

from ..config import LOOPY, PUPPET, LoopyConfig
from .objective import ConditionDropping


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    batch: int
    learning_rate: float
    spatial_only: bool  # stage one: single frames, no temporal layers, no audio
    dropping: ConditionDropping = ConditionDropping()
    warmup: int = 50  # steps of linear learning-rate rise
    constant: float = 1.0  # share of the steps before the cosine decay
    final: float = 0.03  # learning rate at the end, as a share
    beta2: float = 0.999


@dataclass(frozen=True)
class Recipe:
    """What to train, how, and from which seed."""

    name: str
    config: LoopyConfig
    stages: tuple[Stage, ...]
    seed: int = 0
    ema_decay: float = 0.9999
    weight_decay: float = 1e-2
    clip_norm: float = 1.0


STAGE_ONE = Stage("one", steps=30_000, batch=24, learning_rate=1e-5, spatial_only=True)
STAGE_TWO = replace(STAGE_ONE, name="two", spatial_only=False)
"""AdamW 1e-5 and batch 24 are the paper's; it gives days (4 each on 24 A100), not steps."""

PUPPET_DROPPING = ConditionDropping(audio_without_reference=0.5)
"""At the paper's rates e_base (no reference, no audio) would be 1.5 % of so few samples."""

RECIPES = {
    "loopy": Recipe("loopy", LOOPY, (STAGE_ONE, STAGE_TWO)),
    "puppet": Recipe(
        "puppet",
        PUPPET,
        (
            Stage("one", 1400, 32, 1.5e-3, True, PUPPET_DROPPING, constant=0.6, beta2=0.99),
            Stage("two", 3000, 8, 1.0e-3, False, PUPPET_DROPPING, constant=0.4, beta2=0.99),
        ),
        ema_decay=0.998,
    ),
}
