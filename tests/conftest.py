"""Fixtures of the CPU tests; tests/host and tests/puppet have their own."""

import pytest
import torch
from oracles import small_model

from loopy_model.conditions import Speech
from loopy_model.config import TINY, LoopyConfig
from loopy_model.model import Loopy


@pytest.fixture(scope="session")
def tiny() -> Loopy:
    """TINY with random weights in every layer. Shared: do not change it."""
    return small_model(TINY)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def speak(generator: torch.Generator):  # noqa: ANN201
    """Makes speech of so many video frames, as a model of `config` hears it."""

    def make(frames: int, config: LoopyConfig = TINY) -> Speech:
        shape = (frames, config.audio.layers, config.audio.width)
        return Speech(torch.randn(shape, generator=generator), config.clip.fps)

    return make
