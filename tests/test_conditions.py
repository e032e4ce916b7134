"""What a frame hears, and what the branches of guidance lose."""

import pytest
import torch

from loopy_model.conditions import Conditions, KeyValue, SiteConditions, Speech


def counting(frames: int, layers: int = 3) -> Speech:
    """Speech whose features say frame + layer / 10."""
    values = torch.arange(frames)[:, None, None] + torch.arange(layers)[:, None] / 10
    return Speech(values.float(), 25)


def test_a_frame_hears_two_before_and_two_after() -> None:
    windows = counting(20).windows(5, frames=3, context=2, layers=3)
    assert windows.shape == (1, 3, 5, 3, 1)
    assert windows[0, :, :, 0, 0].tolist() == [[3, 4, 5, 6, 7], [4, 5, 6, 7, 8], [5, 6, 7, 8, 9]]


def test_windows_are_clamped_at_both_ends() -> None:
    windows = counting(4).windows(0, frames=4, context=2, layers=1)[0, :, :, 0, 0].round()
    assert windows.tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


def test_the_padded_frames_of_the_last_clip_hear_what_the_last_one_does() -> None:
    windows = counting(5).windows(4, frames=4, context=1, layers=1)[0, :, :, 0, 0].round()
    assert windows.tolist() == [[3, 4, 4]] * 4


def test_the_last_layers_are_taken() -> None:
    windows = counting(4, layers=5).windows(1, frames=1, context=0, layers=2)
    assert windows.flatten().tolist() == pytest.approx([1.3, 1.4])


@pytest.fixture
def everything() -> Conditions:
    def pair() -> KeyValue:
        return KeyValue(torch.rand(1, 2, 3), torch.rand(1, 2, 3))

    sites = tuple(SiteConditions(pair(), pair(), pair()) for _ in range(3))
    return Conditions(sites, motion_latents=torch.rand(1, 4, 5))


def test_without_audio_loses_the_cross_attention_and_the_motion_latents(
    everything: Conditions,
) -> None:
    less = everything.without_audio()
    assert less.motion_latents is None and len(less.sites) == 3
    for before, after in zip(everything.sites, less.sites):
        assert after.audio is None
        assert after.reference is before.reference and after.motion is before.motion


def test_without_reference_loses_the_motion_frames_too(everything: Conditions) -> None:
    less = everything.without_reference()
    assert less.motion_latents is everything.motion_latents and len(less.sites) == 3
    for before, after in zip(everything.sites, less.sites):
        assert after.reference is None and after.motion is None
        assert after.audio is before.audio


def test_dropping_changes_a_copy_only(everything: Conditions) -> None:
    everything.without_audio().without_reference()
    assert everything.motion_latents is not None
    assert all(None not in site for site in everything.sites)
