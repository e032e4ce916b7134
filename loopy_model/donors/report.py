"""What an import did with every weight of the donor and of Loopy; both tables add up to 100 %."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod

from torch import Tensor

from ..config import DiffusionConfig
from .families import Family, layout_of
from .plan import How, Plan
from .recognise import PARTS, parts_of

HOW: dict[How, str] = {
    "taken": "from the donor, bit for bit",
    "copied": "from the donor once more",
    "folded": "several of the donor's in one",
    "computed": "by a formula of the donor's",
    "zero": "start at zero",
    "fixed": "start values (ones, waves of time)",
    "random": "random",
}
LOOPY_PARTS = {  # a word of the weight's name -> what it belongs to; the first that fits
    "inter_modules": "inter-clip layers",
    "audio_modules": "audio layers",
    "intra_modules": "temporal layers",
    "audio_projection": "audio condition module",
    "audio_norm": "audio condition module",
    "audio_to_latents": "audio-to-latents",
    "reference_unet": "reference net",
    "denoising_unet": "denoising net, spatial",
}
Line = tuple[str, str]
Table = dict[Line, tuple[int, int]]  # line -> tensors, values


def donor_table(plan: Plan, donor: Mapping[str, Tensor]) -> Table:
    """What became of the donor's weights, by part: `folded` beats `taken`."""
    fate = {key: f"dropped: {why}" for key, why in plan.dropped.items()}
    for source in plan.sources.values():
        for key in source.keys:
            if not fate.get(key, "").startswith("used"):
                fate[key] = "folded into another" if source.how == "folded" else "used"
    return _table(((key.partition(".")[0], fate[key]), tensor.numel()) for key, tensor in donor.items())


def loopy_table(plan: Plan) -> Table:
    """Where Loopy's weights come from, by part."""
    return _table(((_part(name), HOW[plan.how(name)]), prod(shape)) for name, shape in plan.shapes.items())


def _part(name: str) -> str:
    words = name.split(".")
    return next(title for word, title in LOOPY_PARTS.items() if word in words)


def _table(weights: Iterable[tuple[Line, int]]) -> Table:
    tensors, values = Counter(), Counter()
    for line, size in weights:
        tensors[line] += 1
        values[line] += size
    return {line: (tensors[line], values[line]) for line in sorted(tensors)}


def coverage(family: Family, plan: Plan, donor: Mapping[str, Tensor], unused: Iterable[str]) -> str:
    """The whole report."""
    layout = layout_of(plan.config)
    parts = "; ".join(PARTS[part] for part in PARTS if part in parts_of(donor))
    lines = [
        f"{family.title}: {parts}",
        "",
        *_print("The donor's weights", donor_table(plan, donor)),
        "",
        *_print("Loopy's weights", loopy_table(plan)),
        "",
        f"Noise: {noise(plan.config.diffusion)}; it stands in the header and the sampler obeys it.",
        f"Exact: {family.exact[layout]}.",
        f"Before fine-tuning {family.before[layout]}",
        f"Licence: {family.licence}",
    ]
    if unused := list(unused):
        lines.append(f"Not used: {', '.join(unused)}")
    return "\n".join(lines)


def _print(title: str, table: Table) -> list[str]:
    total_tensors, total = (sum(column) for column in zip(*table.values()))
    width = max(len(part) for part, _ in table)
    rows = [
        f"  {part:<{width}}  {tensors:>5}  {values / 1e6:>8.2f} M  {values / total:>7.2%}  {what}"
        for (part, what), (tensors, values) in table.items()
    ]
    return [f"{title}: {total_tensors} tensors, {total / 1e6:.2f} M values", *rows]


def noise(diffusion: DiffusionConfig) -> str:
    snr = ", zero terminal SNR" if diffusion.zero_terminal_snr else ""
    return f"{diffusion.prediction}, {diffusion.beta_schedule} betas{snr}, {diffusion.spacing} steps"
