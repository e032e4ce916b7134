"""Which donor weights a Loopy weight is made from, decided by names and shapes alone.

A donor's layout is a table of `Row`s: the first whose pattern matches a donor weight's whole name
says where that weight goes. A plan is strict: a donor weight that no row knows, a Loopy weight that
should have come from the donor, or one of another shape, and nothing is imported.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..config import LoopyConfig
from ..model import Loopy
from .read import NotADonor

How = Literal["taken", "copied", "folded", "computed", "zero", "fixed", "random"]
"""Where a Loopy weight comes from.

taken: one donor weight, bit for bit. copied: the same donor weight once more. folded: several donor
weights in one. computed: by a formula of the donor's. The rest are Loopy's own start values: zero,
fixed (ones of norms, sinusoids of time), random.
"""


class Row(NamedTuple):
    """Where the donor's weights go whose whole name matches `pattern`."""

    pattern: str
    to: tuple[str, ...] = ()  # names in Loopy, \\1 .. as in re.sub; weights with one target are added
    why: str = ""  # without targets: why the weight is left out


class Source(NamedTuple):
    """What one Loopy weight is made from."""

    keys: tuple[str, ...]  # of the donor
    make: Callable[..., Tensor]  # from their tensors
    how: How


Special = Callable[[Mapping[str, torch.Size], Mapping[str, Tensor], LoopyConfig], dict[str, Source]]
"""(shapes of Loopy's weights, donor, config) -> weights that are made in a way of their own."""


@dataclass(frozen=True)
class Plan:
    config: LoopyConfig
    shapes: dict[str, torch.Size]  # of all Loopy weights
    sources: dict[str, Source]  # of those that the donor fills
    start: dict[str, How]  # of the others
    dropped: dict[str, str]  # donor weight -> why

    def how(self, name: str) -> How:
        return self.sources[name].how if name in self.sources else self.start[name]


def make_plan(
    config: LoopyConfig,
    donor: Mapping[str, Tensor],
    rows: Iterable[Row],
    special: Special,
    own: str,
) -> Plan:
    """`special` gives the Loopy weights that are made otherwise than by the rows. `own`: a pattern of the Loopy
    weights that may start without the donor. Raises NotADonor with one sentence."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Loopy(config).state_dict().items()}
    made = special(shapes, donor, config)
    parts, dropped = _sort(donor, tuple(rows), made)
    sources = {name: _added(keys, first) for name, (keys, first) in parts.items()} | made
    _check(shapes, sources, donor, own)
    start = {name: how for name, how in start_values(config).items() if name not in sources}
    return Plan(config, shapes, sources, start, dropped)


def _sort(
    donor: Mapping[str, Tensor], rows: tuple[Row, ...], special: Mapping[str, Source]
) -> tuple[dict[str, tuple[list[str], bool]], dict[str, str]]:
    """Loopy weight -> (donor weights, whether they go there first); donor weight -> why it is dropped."""
    parts: dict[str, tuple[list[str], bool]] = {}
    dropped: dict[str, str] = {}
    used = {key for source in special.values() for key in source.keys}
    for key in donor:
        if key in used:
            continue
        row, match = next(((row, m) for row in rows if (m := re.fullmatch(row.pattern, key))), (None, None))
        if row is None:
            raise NotADonor(
                f"{key} is a weight that no known model of this kind has; give the original file."
            )
        if not row.to:
            dropped[key] = row.why
        for number, target in enumerate(row.to):
            parts.setdefault(match.expand(target), ([], number == 0))[0].append(key)
    return parts, dropped


def _added(keys: list[str], first: bool) -> Source:
    if len(keys) > 1:
        return Source(tuple(keys), _sum, "folded")
    return Source(tuple(keys), _same, "taken") if first else Source(tuple(keys), torch.clone, "copied")


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _sum(*tensors: Tensor) -> Tensor:
    return torch.stack([tensor.float() for tensor in tensors]).sum(0)


def _check(
    shapes: Mapping[str, torch.Size], sources: Mapping[str, Source], donor: Mapping[str, Tensor], own: str
) -> None:
    if unknown := sorted(sources.keys() - shapes.keys()):
        first = (*sources[unknown[0]].keys, unknown[0])[0]
        raise NotADonor(f"{first} has no place in SD1.5's shape; give the original file.")
    missing = [name for name in shapes.keys() - sources.keys() if not re.fullmatch(own, name)]
    missing += [key for source in sources.values() for key in source.keys if key not in donor]
    if missing:
        raise NotADonor(
            f"the donor is incomplete: {len(missing)} weights are missing (first: {min(missing)}); "
            "download its files again."
        )
    counted = [
        key for source in sources.values() for key in source.keys if not donor[key].is_floating_point()
    ]
    if counted:
        raise NotADonor(
            f"{min(counted)} holds whole numbers: the file is quantised; give the fp16 or fp32 file of the same model."
        )
    for name, source in sources.items():
        if not _fits(source, donor, shapes[name]):
            parts = " and ".join(f"{key} {tuple(donor[key].shape)}" for key in source.keys)
            raise NotADonor(
                f"{parts} cannot become {name} {tuple(shapes[name])}; the files belong to models of other sizes."
            )


def _fits(source: Source, donor: Mapping[str, Tensor], shape: torch.Size) -> bool:
    try:  # on the meta device nothing is read
        return source.make(*(donor[key].to("meta") for key in source.keys)).shape == shape
    except (RuntimeError, IndexError):
        return False


@lru_cache
def start_values(config: LoopyConfig) -> dict[str, How]:
    """How a newly built model's weights start. Two narrow models tell: widths do not matter to it."""
    one, other = (_narrow(config, seed) for seed in (0, 1))
    return {
        name: "random" if not torch.equal(one[name], other[name]) else "fixed" if one[name].any() else "zero"
        for name in one
    }


def _narrow(config: LoopyConfig, seed: int) -> dict[str, Tensor]:
    widths = sorted(set(config.unet.channels))
    channels = tuple(2 * (1 + widths.index(width)) for width in config.unet.channels)
    small = replace(
        config,
        unet=replace(config.unet, channels=channels, heads=1, groups=1),
        audio=replace(
            config.audio, width=2, hidden=2, tokens=2, token_width=2, latent_embeddings=2, latent_width=2
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Loopy(small).state_dict()


def build(
    plan: Plan, donor: Mapping[str, Tensor], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Loopy:
    """The model that the plan describes, its weights in `dtype`; `seed` is that of the random ones."""
    with torch.device("meta"):
        model = Loopy(plan.config)  # SD1.5's part takes no memory before the donor fills it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.denoising_unet.add_conditions(plan.config)
        model.add_audio()
    state = {name: model.get_parameter(name).detach() for name in plan.start}
    for name, source in plan.sources.items():
        state[name] = source.make(*(donor[key] for key in source.keys))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    return model.eval()
