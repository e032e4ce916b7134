"""Importers of public weights: a Loopy model that starts from its relatives.

`read` opens files, `recognise` tells what they are, a `Family` (its table of rows is the layout) says
where each weight goes, `plan` checks and builds, `report` accounts for every weight.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..weights import Header, ModelCard, save_checkpoint
from .families import FAMILIES, Family, Layout, layout_of
from .plan import Plan, build, make_plan
from .read import NotADonor, WeightFile, read
from .recognise import PARTS, parts_of, recognise
from .report import coverage

__all__ = ["FAMILIES", "Import", "NotADonor", "WeightFile", "build", "card", "prepare", "read", "write"]


@dataclass(frozen=True)
class Import:
    """Everything that is decided before a number is read."""

    family: Family
    plan: Plan
    donor: dict[str, Tensor]
    unused: tuple[str, ...]  # files in the folders that were of no use

    @property
    def report(self) -> str:
        return coverage(self.family, self.plan, self.donor, self.unused)


def prepare(files: Iterable[WeightFile], layout: Layout = "loopy") -> Import:
    """The files of one donor, in any order. Raises NotADonor with one sentence."""
    files = list(files)
    donor, unused = gather(files)
    family = choose(parts_of(donor), first_trouble(files))
    try:
        config = family.config(donor, layout)
    except NotADonor:
        raise
    except (LookupError, ValueError, ArithmeticError) as error:  # of the weights that tell the sizes
        missing = f" ({error.args[0]} is missing)" if isinstance(error, KeyError) else ""
        raise NotADonor(f"the donor's weights are damaged{missing}; download its files again.") from error
    rows = family.rows(config)
    plan = make_plan(config, donor, rows, family.special, family.own(donor))
    return Import(family, plan, donor, unused)


def gather(files: Sequence[WeightFile]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All weights under their names here; the names of files that lay there and are of no use."""
    donor: dict[str, Tensor] = {}
    given: dict[str, str] = {}  # part -> file
    unused = []
    for file in files:
        weights = recognise(file)
        if weights is None:
            unused.append(file.name)
            continue
        for part in sorted(parts_of(weights)):
            if part in given:
                raise NotADonor(f"{given[part]} and {file.name} are both {PARTS[part]}; give one of them.")
            given[part] = file.name
        donor |= weights
    if not donor:
        raise NotADonor(
            first_trouble(files)
            or f"nothing in {', '.join(unused)} can be imported; docs/importing.md of the repository lists what can."
        )
    return donor, tuple(unused)


def first_trouble(files: Sequence[WeightFile]) -> str:
    """With the first file of a folder that could not be opened."""
    return next((file.trouble for file in files if file.trouble), "")


def choose(parts: set[str], trouble: str) -> Family:
    """The family that consists of exactly these parts; if there is none, `trouble` with a file may be why."""
    for family in FAMILIES:
        if set(family.parts) <= parts <= {*family.parts, *family.extras}:
            return family
    if trouble:
        raise NotADonor(trouble)
    family = max(FAMILIES, key=lambda family: len(parts & set(family.parts)) - len(set(family.parts) - parts))
    have = " and ".join(PARTS[part] for part in PARTS if part in parts)
    if missing := [part for part in family.parts if part not in parts]:
        need = " and ".join(PARTS[part] for part in missing)
        raise NotADonor(f"the files hold {have}; for {family.title}, {need} is missing: give it too.")
    extra = " and ".join(PARTS[part] for part in PARTS if part in parts - {*family.parts, *family.extras})
    raise NotADonor(f"the files hold {have}; for {family.title}, leave out {extra}.")


def card(family: Family, layout: Layout) -> ModelCard:
    return ModelCard(
        name=f"Imported from {family.title}",
        trained_on=f"what the weights of {family.title} were trained on; nothing since they were imported",
        limits=f"Before fine-tuning {family.before[layout]}",
        licence=family.licence,
    )


def write(made: Import, path: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
    """Builds the model and writes its checkpoint; the file appears when it is complete."""
    model = build(made.plan, made.donor, seed, dtype)
    save_checkpoint(
        path,
        Header(made.plan.config, card(made.family, layout_of(made.plan.config))),
        {"loopy": model},
        dtype,
    )
