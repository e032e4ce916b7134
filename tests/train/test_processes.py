"""Several processes, accumulated pieces and checkpointing carry out the same run, but for rounding."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import RECIPE, TINY, Runs, contents, free_port, has_logged, log_of, place_of, state_of

from loopy_model.train.data import PreparedClips
from loopy_model.train.export import train
from loopy_model.train.loop import Settings, Trainer
from loopy_model.train.processes import in_processes
from loopy_model.train.state import write_state

ROOT = Path(__file__).parents[2]


def assert_same_but_for_rounding(one: Path, other: Path) -> None:
    rows, expected = log_of(one), log_of(other)
    assert len(rows) == len(expected)
    for row, known in zip(rows, expected):
        assert row.keys() == known.keys()
        for name, value in row.items():
            if name in ("stage", "step"):
                assert value == known[name]
            else:  # per-condition means are rounded to six places
                rel = 1e-4 if name == "grad_norm" else 1e-6
                assert value == pytest.approx(known[name], rel=rel, abs=2e-6 * (name == "per_condition"))
    (header, tensors), (known_header, known) = (contents(p / "loopy.safetensors") for p in (one, other))
    assert header == known_header and tensors.keys() == known.keys()
    for key in known:
        assert torch.allclose(tensors[key], known[key], rtol=0, atol=1e-4), key


def test_torchrun_with_two_processes_equals_one(runs: Runs, finished: Path) -> None:
    """The command as a person gives it."""
    path = runs.folder / "torchrun"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        2,
        "--master_port",
        free_port(),
    ]
    what = ["-m", "loopy_model.train", "--data", runs.data, "--run-dir", path, "--recipe", runs.recipe]
    how = ["--device", "cpu", "--save-every", 100]
    done = subprocess.run(
        [str(part) for part in (*launch, *what, *how)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done:") == 1
    tensors, known = (contents(p / "loopy.safetensors")[1] for p in (path, finished))
    assert all(torch.allclose(tensors[key], known[key], rtol=0, atol=1e-4) for key in known)
    losses, expected = ([row["loss"] for row in log_of(p) if "loss" in row] for p in (path, finished))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert "of 5" in (path / "report.md").read_text() and (path / "curves.png").stat().st_size > 10_000


def test_two_processes_without_a_launcher_equal_one(runs: Runs, finished: Path) -> None:
    """And what goes wrong in them is what the caller sees."""
    path = runs.folder / "without_launcher"
    assert in_processes(2, train, RECIPE, runs.data, path) == [path / "loopy.safetensors"] * 2
    tensors, known = (contents(p / "loopy.safetensors")[1] for p in (path, finished))
    assert all(torch.allclose(tensors[key], known[key], rtol=0, atol=1e-4) for key in known)
    with pytest.raises(ValueError, match="was begun with another recipe .*seed was 0, now 1"):
        in_processes(2, train, replace(RECIPE, seed=1), runs.data, path)


def test_processes_without_a_launcher_end_with_their_parent(tmp_path: Path) -> None:
    """Whoever resumes the run must not find them training on."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        children = [int(wait_for(tmp_path / f"{rank}.pid").read_text()) for rank in range(2)]
    finally:
        parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, children)):
        assert time.monotonic() < deadline, "a process has outlived its parent"
        time.sleep(0.05)


def alone_in_trouble() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("only this one")
    time.sleep(600)


def test_what_one_process_raises_ends_the_others() -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="only this one"):
        in_processes(2, alone_in_trouble)
    assert time.monotonic() - began < 300


PARENT = """
import os, sys, time
from pathlib import Path
from loopy_model.train.processes import in_processes

def work(folder):
    partial = Path(folder) / f"{os.environ['RANK']}.partial"
    partial.write_text(str(os.getpid()))
    partial.rename(partial.with_suffix(".pid"))
    time.sleep(600)

if __name__ == "__main__":
    in_processes(2, work, sys.argv[1])
"""


def wait_for(path: Path) -> Path:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
    return path


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # a zombie has ended, though nobody has asked how
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_two_processes_that_accumulate_equal_one(runs: Runs, finished: Path) -> None:
    path = runs.finish("two", "--accumulate", 2, "--workers", 1, processes=2)
    assert_same_but_for_rounding(path, finished)


def test_a_sharded_run_that_was_killed_goes_on_in_two_processes_or_one(data: Path, tmp_path: Path) -> None:
    """The state holds whole tensors under plain names. Shards of so small weights take much time, so
    this is a smaller model."""
    config = replace(TINY, unet=replace(TINY.unet, channels=(8,), attention=(True,)))
    stage = replace(RECIPE.stages[1], steps=4)
    runs = Runs(tmp_path, data, replace(RECIPE, config=config, stages=(stage,)))
    known = runs.finish("known")
    killed = runs.killed(
        "shard", has_logged("two", 3), lambda path: place_of(path) == (0, 2), "--shard", processes=2
    )
    assert state_of(killed)["optimizer"]["state"]
    alone = Path(shutil.copytree(killed, tmp_path / "alone"))
    again = runs.finish(killed.name, "--shard", "--accumulate", 2, processes=2)
    assert_same_but_for_rounding(again, known)
    assert_same_but_for_rounding(runs.finish(alone.name), known)


def test_sharded_gradients_are_added_up_once_a_step(
    clips: tuple[PreparedClips, PreparedClips], tmp_path: Path
) -> None:
    trainer, stage, asked = Trainer(RECIPE, tmp_path, *clips, Settings(accumulate=4)), RECIPE.stages[0], []
    trainer.wrapped.set_requires_gradient_sync = asked.append  # as FSDP's
    trainer.train_step(stage, trainer.make_optimizer(stage), *trainer.batches(stage, range(1)))
    assert asked == [False, False, False, True]


def test_nodes_that_do_not_share_the_run_directory_are_refused(
    clips: tuple[PreparedClips, PreparedClips], tmp_path: Path
) -> None:
    """The other node has no state in its own."""
    trainer = Trainer(RECIPE, tmp_path, *clips)
    trainer._save(trainer.make_optimizer(RECIPE.stages[0]))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    write_state(tmp_path / "state.pt", state | {"step": 2})
    trainer.accelerator.gather = lambda place: torch.cat([place, torch.zeros_like(place)])
    with pytest.raises(
        ValueError, match="different states in .*; --run-dir must lie on a disk that all nodes"
    ):
        trainer.run()


def test_checkpointing_changes_no_bit(runs: Runs, finished: Path) -> None:
    tensors = contents(runs.finish("checkpointing", "--checkpointing") / "loopy.safetensors")[1]
    known = contents(finished / "loopy.safetensors")[1]
    assert all(torch.equal(tensors[key], known[key]) for key in known)


def test_a_batch_that_cannot_be_cut_is_refused_before_the_first_step(runs: Runs) -> None:
    """Also where it is that of a later stage."""
    sentence = runs.refused("uneven", "--accumulate", 3, "--batch", 3, 4)
    assert sentence.startswith("a batch of 4 cannot be cut evenly for 1 process")
    assert not (runs.folder / "uneven" / "log.jsonl").exists()
