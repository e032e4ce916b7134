"""The log of a run and what is made from it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import small_model
from runs import RECIPE, TINY, log_of, write_clips

from loopy_model.autoencoder import Autoencoder, AutoencoderConfig
from loopy_model.prepare.encoded import EncodedClip
from loopy_model.train.data import Place, PreparedClips, Samples, collate
from loopy_model.train.loop import Settings, Trainer
from loopy_model.train.preview import Preview
from loopy_model.train.record import Record, read_rows
from loopy_model.train.report import write_report


def test_the_logged_means_are_those_of_the_samples_in_that_order(
    clips: tuple[PreparedClips, PreparedClips], tmp_path: Path
) -> None:
    """Losses and draws of one step, each sample run by itself."""
    stage = RECIPE.stages[1]
    trainer = Trainer(RECIPE, tmp_path, *clips, Settings(accumulate=2))
    trainer.stage_index = 1
    samples = Samples(clips[0], stage, (RECIPE.seed, 1))
    alone = [trainer.losses(stage, *collate([samples[Place(0, i)]])).item() for i in range(stage.batch)]
    losses, _ = trainer.train_step(stage, trainer.make_optimizer(stage), *trainer.batches(stage, range(1)))
    assert losses.tolist() == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == stage.batch


def test_the_log_of_a_step_adds_up(finished: Path, clips: tuple[PreparedClips, PreparedClips]) -> None:
    """In stage one every sample is in one of two conditions: their mean is the loss."""
    samples = Samples(clips[0], RECIPE.stages[0], (RECIPE.seed, 0))
    for row in [row for row in log_of(finished) if "loss" in row][:2]:
        kept = samples.draws(row["step"] - 1).keep_reference
        means = row["per_condition"]
        total = means["all"] * kept.sum() + means.get("no reference", 0) * (~kept).sum()
        assert row["loss"] == pytest.approx(total.item() / len(kept), abs=2e-6)


def test_a_stage_begins_with_its_held_out_loss(finished: Path) -> None:
    first = {row["stage"]: row for row in reversed(log_of(finished))}
    assert [(row["stage"], row["step"]) for row in first.values()] == [("two", 0), ("one", 0)]
    assert all("validation" in row for row in first.values())


def test_rows_after_the_resume_point_are_forgotten(tmp_path: Path) -> None:
    record = Record(tmp_path, RECIPE.stages)
    one, two = RECIPE.stages
    for stage, step in ((one, 1), (one, 2), (one, 3), (two, 1), (two, 2), (two, 3)):
        record.write(stage, step, loss=1.0)
    record.write(two, 2, validation={"all": 1.0})
    with open(record.path, "a") as log:
        log.write('{"stage": "two", "step": 4, "loss": 0.')
    record.keep_until(1, 2)
    places = [(row["stage"], row["step"], "loss" in row) for row in read_rows(record.path)]
    assert places == [("one", s, True) for s in (1, 2, 3)] + [("two", s, True) for s in (1, 2)] + [
        ("two", 2, False)
    ]
    record.write(two, 3, loss=2.0)
    assert [json.loads(line) for line in record.path.read_text().splitlines()] == read_rows(record.path)
    record.write(two, 0, validation={"all": 3.0})
    record.keep_until(1, 0)  # it will be logged again
    assert {row["stage"] for row in read_rows(record.path)} == {"one"}
    record.keep_until(0, 0)
    assert read_rows(record.path) == []


def test_rows_of_a_stage_that_the_recipe_no_longer_has_are_forgotten(tmp_path: Path) -> None:
    """It had begun, but no state of it was saved: another may take its place."""
    one, two = RECIPE.stages
    record = Record(tmp_path, RECIPE.stages)
    record.write(one, 3, loss=1.0)
    record.write(two, 0, validation={"all": 1.0})
    Record(tmp_path, (one, replace(two, name="other"))).keep_until(1, 0)
    assert [row["stage"] for row in read_rows(record.path)] == ["one"]


def test_tensorboard_has_the_numbers_too(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    rows = [row for row in log_of(finished) if row["stage"] == "two"]
    found = [(event.step, event.value) for event in events.Scalars("two/loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in rows if "loss" in row]
    assert {"one/per_condition/all", "two/validation/no audio", "two/grad_norm"} <= set(
        events.Tags()["scalars"]
    )


def test_the_report_is_made_from_the_log(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    write_report(path)
    text = (path / "report.md").read_text()
    assert "| one | 3 of 3 | 4 |" in text and "| two | 5 of 5 | 4 |" in text
    assert (path / "curves.png").stat().st_size > 10_000


def test_the_report_is_utf_8_wherever_it_is_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    data = json.loads((path / "data.json").read_text())
    (path / "data.json").write_text(json.dumps([data[0] | {"folder": "Größe"}]))
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")  # the locale's
    write_report(path)
    assert "from Größe" in (path / "report.md").read_text(encoding="utf-8")


def small_vae() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        latent_channels=4, widths=(8, 8), encoder_blocks=(1, 1), decoder_blocks=(1, 1), groups=4
    )
    return Autoencoder(config)


def test_a_preview_in_half_precision_shows_and_reads_whole_numbers(
    clips: tuple[PreparedClips, PreparedClips], tmp_path: Path
) -> None:
    """The readers of lips are float32, and the VAE is not what trains."""
    read = []
    preview = Preview(
        clips[1], small_vae(), lambda frames: read.append(frames.dtype) or frames.mean((1, 2, 3))
    )
    preview.clips, preview.frames, preview.steps = preview.clips[:1], 4, 1
    with torch.autocast("cpu", torch.bfloat16):
        preview(small_model(TINY), tmp_path, "half")
    assert read == [torch.float32] * 2


def test_a_preview_changes_nothing_but_adds_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real VAE and sampler, which draw random numbers of their own."""
    monkeypatch.setattr("loopy_model.train.loop.VALIDATION_SAMPLES", 2)
    data = write_clips(
        tmp_path / "data", (EncodedClip("a", 9, "train", True), EncodedClip("b", 12, "test", True))
    )
    train, test = (PreparedClips(data, split, TINY) for split in ("train", "test"))
    vae = small_vae()
    recipe = replace(RECIPE, stages=(replace(RECIPE.stages[1], steps=2),))
    made = []
    for preview in (None, Preview(test, vae, lambda frames: frames.mean((1, 2, 3)), frames=10, steps=2)):
        path = tmp_path / str(len(made))
        settings = Settings(save_every=100, preview_every=1)
        made.append(Trainer(recipe, path, train, test, settings, preview=preview).run().state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    names = {file.name for file in (tmp_path / "1" / "previews").iterdir()}
    assert names == {f"two-00000{step}{end}" for step in (0, 1, 2) for end in ("-0.mp4", ".jpg")}
    assert ["lip_sync" in row for row in log_of(tmp_path / "1")].count(True) == 3
