"""The paper's ablations (table 3) as changes of a configuration."""

from dataclasses import replace

from ..config import PUPPET, LoopyConfig

FULL = "full"
# Fields of the puppet's clip geometry, U-Nets and audio modules that a variant changes; behind it
# the paper's name (table 3).
VARIANTS: dict[str, dict[str, dict]] = {
    FULL: {},
    "no inter-clip layer": {"unet": {"temporal": "joint"}, "clip": {"segments": 1}},  # w/o inter-clip temp.
    "4 motion frames": {"clip": {"segments": 1}},  # w/o TSM
    "no audio-to-latents": {"audio": {"to_latents": False}},  # w/o A2L
    "one temporal layer, 20 frames": {"unet": {"temporal": "joint"}, "clip": {"ratio": 1}},  # 1 temp. + 20 MF
    "20 frames in a row": {"clip": {"ratio": 1}},  # s = 4, r = 1
    "mean sampling": {"clip": {"sampling": "mean"}},
    "random sampling": {"clip": {"sampling": "random"}},
}


def config_of(variant: str, base: LoopyConfig = PUPPET) -> LoopyConfig:
    """`base` with what the variant changes."""
    parts = {name: replace(getattr(base, name), **values) for name, values in VARIANTS[variant].items()}
    return replace(base, **parts)


def folder_of(variant: str, seed: int) -> str:
    """Below the run directory."""
    return f"{variant.replace(' ', '_')}/seed-{seed}"
