"""Half precision and 8-bit moments: near the float32 run, and resumed as exactly."""

from pathlib import Path

import pytest
from runs import Runs, assert_same_run, has_logged, log_of, place_of

BF16 = ("--mixed-precision", "bf16")


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in log_of(run_dir) if "loss" in row]


@pytest.fixture(scope="module")
def half(runs: Runs) -> Path:
    """bf16 and the 8-bit optimiser at once."""
    pytest.importorskip("bitsandbytes", reason="it has no wheel for this system")
    return runs.finish("half", *BF16, "--optimizer", "adamw8bit")


def test_the_loss_is_near_that_of_float32(half: Path, finished: Path) -> None:
    assert losses(half) == pytest.approx(losses(finished), rel=0.02)
    assert losses(half) != losses(finished)


def test_a_killed_run_ends_in_the_same_bits(runs: Runs, half: Path) -> None:
    how = (*BF16, "--optimizer", "adamw8bit")
    killed = runs.killed("half-killed", has_logged("two", 3), lambda path: place_of(path) == (1, 2), *how)
    assert_same_run(runs.finish(killed.name, *how), half)
