"""Every weight of the donor and of Loopy is accounted for, and what was taken can be given back."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from make_donors import DONORS, FULL, SMALL, adapter, original_motion, single_file, state, unet

from loopy_model.donors import Import, WeightFile, build, prepare
from loopy_model.donors.plan import start_values
from loopy_model.donors.report import donor_table, loopy_table
from loopy_model.donors.sd15 import PREFIX
from loopy_model.model import Loopy

Make = Callable[..., list[WeightFile]]
CASES = [(name, layout) for name in DONORS for layout in ("loopy", "joint")]
EVERY_LAYOUT = pytest.mark.parametrize("case", CASES, ids=" ".join)


@pytest.fixture(scope="module")
def small() -> Callable[[tuple[str, str]], Import]:
    made: dict[tuple[str, str], Import] = {}

    def make(case: tuple[str, str]) -> Import:
        if case not in made:
            made[case] = prepare(DONORS[case[0]](SMALL), case[1])
        return made[case]

    return make


def add_up(made: Import) -> None:
    """Both tables hold every weight exactly once, and every donor weight has one fate."""
    plan, donor = made.plan, made.donor
    used = {key for source in plan.sources.values() for key in source.keys}
    assert used | plan.dropped.keys() == donor.keys() and not used & plan.dropped.keys()
    assert all(plan.dropped.values()), "a reason for each"
    assert plan.sources.keys() | plan.start.keys() == plan.shapes.keys()
    assert not plan.sources.keys() & plan.start.keys()
    for table, sizes in (
        (donor_table(plan, donor), [tensor.numel() for tensor in donor.values()]),
        (loopy_table(plan), [prod(shape) for shape in plan.shapes.values()]),
    ):
        assert [sum(column) for column in zip(*table.values())] == [len(sizes), sum(sizes)]


@EVERY_LAYOUT
def test_both_sides_add_up(small: Callable, case: tuple[str, str]) -> None:
    add_up(small(case))


@EVERY_LAYOUT
def test_both_sides_add_up_at_full_width(case: tuple[str, str]) -> None:
    """On the meta device: names and shapes of the real files, no numbers."""
    made = prepare(DONORS[case[0]](FULL), case[1])
    add_up(made)
    assert made.plan.config.unet.channels == FULL
    spatial = sum(
        name.startswith("denoising_unet.") and source.how in ("taken", "folded") and "_modules" not in name
        for name, source in made.plan.sources.items()
    )
    assert spatial == 686 - 7 * 16  # SD1.5's weights but for the text attention and its norm at 16 sites


def numbers(case: tuple[str, str], rows: int) -> list[int]:
    """Which rows of a donor's positional encoding a layer takes: Hallo's clip begins at 2, and before it
    stand two motion frames, ours with the nearest first."""
    first = 2 if case[0] == "Hallo" else 0
    past = [1, 0] if case == ("Hallo", "joint") else []
    return [*past, *range(first, first + rows - len(past))]


@EVERY_LAYOUT
def test_what_was_taken_can_be_given_back_bit_for_bit(small: Callable, case: tuple[str, str]) -> None:
    made = small(case)
    weights = build(made.plan, made.donor).state_dict()
    taken = {n: source for n, source in made.plan.sources.items() if source.how in ("taken", "copied")}
    given_back = set()
    for name, source in taken.items():
        (key,) = source.keys
        original = made.donor[key]
        if name.endswith("positions"):
            original = original[0, numbers(case, len(weights[name]))]
        assert torch.equal(weights[name], original), name
        given_back.add(key)
    folded = {k for source in made.plan.sources.values() if source.how == "folded" for k in source.keys}
    assert given_back == made.donor.keys() - folded - made.plan.dropped.keys()
    assert len(given_back) > 1000


@EVERY_LAYOUT
def test_what_was_folded_is_the_sum(small: Callable, case: tuple[str, str]) -> None:
    made = small(case)
    weights = build(made.plan, made.donor).state_dict()
    folded = {n: source for n, source in made.plan.sources.items() if source.how == "folded"}
    heard = {name for name in folded if ".audio_modules." in name}
    assert len(heard) == (5 * 16 if case[0] == "Hallo" else 0)  # test_hallo looks at these
    assert len(folded) - len(heard) == 2 * 16
    for name, source in ((n, s) for n, s in folded.items() if n not in heard):
        one, other = (made.donor[key] for key in source.keys)
        assert name.endswith("attn1.to_out.0.bias")
        assert {key.split(".")[-4] for key in source.keys} == {"attn1", "attn2"}
        assert torch.equal(weights[name], one + other)


@EVERY_LAYOUT
def test_weights_that_the_report_calls_zero_are_zero_and_random_ones_follow_the_seed(
    small: Callable, case: tuple[str, str]
) -> None:
    made = small(case)
    one, again, other = (build(made.plan, made.donor, seed).state_dict() for seed in (0, 0, 1))
    for name in made.plan.shapes:
        how = made.plan.how(name)
        assert one[name].any() != (how == "zero") or how not in ("zero", "random", "fixed"), name
        assert torch.equal(one[name], again[name]), name
        assert torch.equal(one[name], other[name]) == (how != "random"), name


def test_start_values_are_those_of_a_model_of_any_width(small: Callable) -> None:
    config = small(CASES[0]).plan.config
    torch.manual_seed(3)
    state_dict = Loopy(config).state_dict()
    zero = {name for name, how in start_values(config).items() if how == "zero"}
    assert zero == {name for name, tensor in state_dict.items() if not tensor.any()}


# --- names of single files ----------------------------------------------------------------------


@pytest.mark.parametrize("channels", [SMALL, FULL], ids=["reduced", "full"])
def test_single_files_are_renamed_as_diffusers_renames_them(channels: tuple[int, ...]) -> None:
    weights = state(unet(channels))
    file = single_file(weights)
    theirs = convert_ldm_unet_checkpoint(dict(file), {"layers_per_block": 2})
    ours = prepare(
        [WeightFile("sd15", file), WeightFile("mm", original_motion(state(adapter(channels))))]
    ).donor
    ours = {k.removeprefix("unet."): v for k, v in ours.items() if k.startswith("unet.")}
    assert len(ours) == 686 and ours.keys() == theirs.keys()
    assert all(ours[key] is theirs[key] is weights[key] for key in ours)


def test_a_bare_single_file_net_needs_no_prefix() -> None:
    files = [WeightFile("mm", original_motion(state(adapter()))), WeightFile("u", single_file(state(unet())))]
    bare = {k.removeprefix(PREFIX): v for k, v in files[1].tensors.items() if k.startswith(PREFIX)}
    made = prepare([files[0], WeightFile("bare", bare)])
    assert made.plan.sources.keys() == prepare(files).plan.sources.keys()
