"""The portrait: the largest centred square, nothing stretched, whatever it came as."""

import pytest
import torch
from torch import Tensor

from loopy_model.portrait import smallest_side, square_portrait


def ramp(height: int, width: int) -> Tensor:
    """Red grows to the right, green downwards, by 1/1000 a pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x / 1000, y / 1000, torch.full((height, width), 0.25)], -1)


@pytest.mark.parametrize("height, width", [(64, 64), (64, 200), (200, 64), (65, 130), (131, 64)])
def test_the_largest_centred_square_is_cut_out(height: int, width: int) -> None:
    side = min(height, width)
    picture = square_portrait(ramp(height, width), side)
    top, left = (height - side) // 2, (width - side) // 2
    expected = ramp(height, width)[top : top + side, left : left + side]
    assert torch.allclose(picture, expected, atol=1e-5)


@pytest.mark.parametrize("side, size", [(300, 64), (64, 96), (100, 64)])
@pytest.mark.parametrize("extra", [0, 60])
def test_nothing_is_stretched(side: int, size: int, extra: int) -> None:
    """A disc stays round and in the middle."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side + extra), indexing="ij")
    radius = (y - (side - 1) / 2) ** 2 + (x - (side + extra - 1) / 2) ** 2
    disc = (radius < (0.3 * side) ** 2).float()[..., None].expand(-1, -1, 3)
    mass = square_portrait(disc, size)[..., 0]
    place = torch.arange(size) - (size - 1) / 2
    down, across = mass.sum(1), mass.sum(0)
    spread = [((place**2 * m).sum() / m.sum()).sqrt().item() for m in (down, across)]
    assert spread[0] == pytest.approx(spread[1], rel=1e-3)
    assert spread[0] == pytest.approx(0.3 * size / 2, rel=0.02)
    for m in (down, across):
        assert abs((place * m).sum() / m.sum()) < 0.51


def test_the_picture_is_smoothed_when_it_shrinks() -> None:
    checks = (torch.arange(256)[:, None] + torch.arange(256)).remainder(2).float()
    picture = square_portrait(checks[..., None].expand(-1, -1, 3), 64)
    assert (picture - 0.5).abs().max() < 0.02


def test_alpha_is_left_out() -> None:
    transparent = torch.cat([ramp(64, 64), torch.zeros(64, 64, 1)], -1)
    assert torch.equal(square_portrait(transparent, 64), square_portrait(ramp(64, 64), 64))


def test_grey_becomes_three_equal_channels() -> None:
    grey = ramp(64, 80)[..., :1]
    picture = square_portrait(grey, 64)
    assert picture.shape == (64, 64, 3)
    assert all(torch.equal(picture[..., 0], picture[..., i]) for i in (1, 2))
    assert torch.allclose(picture[..., :1], square_portrait(ramp(64, 80), 64)[..., :1])


def test_grey_with_alpha_becomes_three_equal_channels() -> None:
    both = torch.cat([ramp(64, 64)[..., :1], torch.ones(64, 64, 1)], -1)
    picture = square_portrait(both, 64)
    assert picture.shape == (64, 64, 3)
    assert torch.equal(picture, square_portrait(both[..., :1], 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_values_are_float32_between_0_and_1(dtype: torch.dtype) -> None:
    edges = (torch.rand(100, 90, 3, generator=torch.Generator().manual_seed(0)) > 0.5).to(dtype)
    picture = square_portrait(edges, 64)  # bicubic overshoots at edges
    assert picture.dtype == torch.float32 and picture.shape == (64, 64, 3)
    assert picture.min() >= 0 and picture.max() <= 1


@pytest.mark.parametrize("image_size, least", [(64, 32), (256, 32), (512, 64)])
def test_too_small_a_portrait_is_refused_with_a_sentence(image_size: int, least: int) -> None:
    assert smallest_side(image_size) == least
    small = torch.zeros(least - 1, 300, 3)
    with pytest.raises(ValueError, match=f"300x{least - 1} pixels.* at least {least}x{least}"):
        square_portrait(small, image_size)
    large_enough = square_portrait(torch.zeros(least, 300, 3), image_size)
    assert large_enough.shape == (image_size, image_size, 3)


def test_fine_patterns_of_a_large_picture_become_their_mean() -> None:
    """Without a filter a few of every eight pixels would stand for all: hair and cloth would shimmer."""
    stripes = (torch.arange(1024) % 8 == 0).float()
    picture = square_portrait(stripes[None, :, None].expand(1024, -1, 3), 128)
    assert (picture[4:-4, 4:-4] - 1 / 8).abs().max() < 0.02
