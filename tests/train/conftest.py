"""What the tests of training share: clips, and runs that no test changes."""

from pathlib import Path

import pytest
from runs import TINY, Runs, write_clips

from loopy_model.train.data import PreparedClips


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded clips of random numbers."""
    return write_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def clips(data: Path) -> tuple[PreparedClips, PreparedClips]:
    """For training, for testing."""
    return PreparedClips(data, "train", TINY), PreparedClips(data, "test", TINY)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), data)


@pytest.fixture(scope="session")
def finished(runs: Runs) -> Path:
    """A run that nothing interrupted."""
    return runs.finish("finished")
