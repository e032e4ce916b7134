"""The ablations: what a variant changes, what it starts from, and a whole run with almost no budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import lively

pytest.importorskip("espeakng_loader")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from loopy_model.autoencoder import Autoencoder
from loopy_model.config import PUPPET
from loopy_model.evaluate import ablations, figures
from loopy_model.evaluate.ablation_report import (
    COLUMNS,
    RANKED,
    SEEDS,
    by_variant,
    full_against_each,
    markdown,
    read_results,
    spread,
)
from loopy_model.evaluate.ablations import Ablations, build_parser, main, started_from
from loopy_model.evaluate.variants import VARIANTS, config_of
from loopy_model.model import Loopy
from loopy_model.puppet.clips import SPLITS, encode_share, write_clips
from loopy_model.puppet.fit import save_network
from loopy_model.puppet.laboratory import STEPS, Laboratory
from loopy_model.puppet.meter import FaceMeter
from loopy_model.puppet.pack import pack_encoders
from loopy_model.puppet.train import CLEANING
from loopy_model.speech_encoder import SpeechEncoder
from loopy_model.weights import Header, ModelCard, save_checkpoint


def test_every_variant_changes_one_thing_and_the_full_model_nothing() -> None:
    assert config_of("full") == PUPPET
    configs = [config_of(variant) for variant in VARIANTS]
    assert len(set(map(str, configs))) == len(VARIANTS) == 8
    ages = {variant: config_of(variant).clip.motion_ages for variant in VARIANTS}
    assert ages["4 motion frames"] == ages["no inter-clip layer"] == (0, 1, 2, 3)
    assert ages["20 frames in a row"] == ages["one temporal layer, 20 frames"] == tuple(range(20))
    assert ages["full"] == ages["mean sampling"] == ages["random sampling"] == PUPPET.clip.motion_ages


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_start_from_what_is_shared_and_equal_it(variant: str) -> None:
    """What a variant adds is silent at first. A joint layer sees motion frames from the start: there they
    are left out of the comparison; so is what a net without audio-to-latents cannot hear."""
    full = lively(Loopy(replace(PUPPET, unet=replace(PUPPET.unet, temporal="intra"))), 5)
    shared, model = full.state_dict(), Loopy(config_of(variant)).eval()
    model.load_state_dict(started_from(shared, model.config, PUPPET, seed=3))
    sees, hears = model.config.unet.temporal == "dual", model.config.audio.to_latents
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 12, 32, 8, 8, generator=generator)
    portrait = torch.randn(1, 32, 8, 8, generator=generator)
    windows = torch.randn(1, 12, 5, 5, 64, generator=generator)
    with torch.inference_mode():
        out = []
        for net in (model, full):
            past = torch.randn(net.config.clip.motion_frames, 32, 8, 8)
            conditions = net.encode_conditions(
                [site.normed for site in net.read(portrait)],
                [site.output[None] for site in net.read(past)] if sees else None,
                windows,
                net.motion_latents_from_audio(windows) if hears else None,
            )
            out.append(net.denoise(noisy, torch.tensor([500]), conditions))
    assert torch.allclose(*out, atol=1e-5)


def test_variants_of_a_seed_differ_by_no_other_chance() -> None:
    """Every fresh weight that the full model has too is the full model's."""
    shared = Loopy(replace(PUPPET, unet=replace(PUPPET.unet, temporal="intra"))).state_dict()
    full = started_from(shared, PUPPET, PUPPET, seed=1)
    for variant in VARIANTS:
        weights = started_from(shared, config_of(variant), PUPPET, seed=1)
        for name, weight in weights.items():
            if name in full and weight.shape == full[name].shape and not name.endswith("positions"):
                assert torch.equal(weight, full[name]), (variant, name)
    assert not all(torch.equal(a, full[k]) for k, a in started_from(shared, PUPPET, PUPPET, seed=2).items())


@pytest.fixture
def run(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablations:
    """One that measures next to nothing, in `tmp_path`."""
    short = "--faces 1 --seconds 0.24 --long-faces 1 --long-seconds 1 --level-faces 0 --steps 1"
    monkeypatch.setattr(ablations, "SETTINGS", f"{short} --audio-ratio 1 --ref-ratio 1")
    monkeypatch.setattr(ablations, "LOSS_SAMPLES", 1)
    return Ablations(build_parser().parse_args(["--lab", str(lab), "--run-dir", str(tmp_path)]))


def untrained(run: Ablations, variant: str) -> tuple[Path, Path]:
    """Folder and checkpoint of a model that has learnt nothing."""
    config, folder = config_of(variant, run.base), run.folder(variant, 0)
    card = ModelCard("untrained", "nothing", "everything", "Apache-2.0")
    save_checkpoint(folder / "loopy.safetensors", Header(config, card), {"loopy": Loopy(config)})
    return folder, folder / "loopy.safetensors"


def test_all_variants_are_measured_on_the_same_videos(run: Ablations) -> None:
    """Models that look at 4, 20 and 124 past frames go on after the same 5 s, with the same truth."""
    truths = []
    for variant in ("full", "4 motion frames", "20 frames in a row"):
        folder, loopy = untrained(run, variant)
        run.measure(folder, loopy)
        pieces = [json.loads(p.read_text()) for p in sorted((folder / "measured" / "pieces").iterdir())]
        truths.append([piece["truth"] for piece in pieces])
    assert truths[0] == truths[1] == truths[2] and len(truths[0]) == 3


def test_spread_is_the_mean_and_half_the_range() -> None:
    assert spread([0.1, 0.3]) == "0.200 ± 0.100" and spread([0.25]) == "0.250"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laboratory whose encoders have learnt nothing, with two short clips a split."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    autoencoder, speech = Autoencoder(), SpeechEncoder()
    for name, split in SPLITS.items():
        write_clips(folder / "prepared" / name, split, 2, frames=60)
    save_network(autoencoder, folder / "autoencoder.safetensors")
    save_network(autoencoder, folder / f"{CLEANING}.safetensors")
    save_network(speech, folder / "speech_encoder.safetensors")
    pack_encoders(autoencoder, speech, folder / "encoders.safetensors", 64)
    save_network(FaceMeter(), folder / "meter.safetensors")
    encode_share(folder, 64, (0, 1))
    return folder


def test_only_differences_larger_than_those_of_seeds_count() -> None:
    """By hand: opening +0.10 where seeds are 0.04 apart; width +0.03 of 0.04; identity error 0.02 lower in one
    seed and higher in the other; loss 0.1 higher."""
    same = {column: [1.0, 1.0] for column in COLUMNS}
    full = same | {
        "lip sync, opening": [0.80, 0.84],
        "lip sync, width": [0.80, 0.84],
        "identity error": [0.01, 0.05],
        "loss": [0.3, 0.3],
    }
    other = same | {
        "lip sync, opening": [0.70, 0.74],
        "lip sync, width": [0.77, 0.81],
        "identity error": [0.03, 0.03],
        "loss": [0.2, 0.2],
    }
    full, other = ({SEEDS: [0, 1], **row} for row in (full, other))
    rows = full_against_each({"full": full, "other": other}).splitlines()
    assert rows[0] == "| full against | other |"
    signs = {name: sign for _, name, sign, _ in (map(str.strip, row.split("|")) for row in rows[2:])}
    assert {name: sign for name, sign in signs.items() if sign} == {"lip sync, opening": "+", "loss": "-"}
    assert full_against_each({"other": other}) == ""


def test_every_figure_with_a_better_end_is_ranked() -> None:
    assert list(RANKED) == [column for column in COLUMNS if column.split(",")[0] not in ("Glo", "Exp")]


def test_variants_are_compared_at_the_seeds_that_both_have() -> None:
    """By hand: at seeds 0 and 1 the loss is 0.1 lower; by place it would be 0.4 higher once."""

    def row(losses: dict[int, float]) -> dict[str, list]:
        columns = {column: [1.0] * len(losses) for column in COLUMNS}
        return {SEEDS: list(losses), **columns, "loss": list(losses.values())}

    full, other = row({0: 0.5, 1: 0.5, 10: 0.2}), row({10: 0.9, 1: 0.6, 0: 0.6, 2: 0.1})
    rows = full_against_each(
        {"full": row({0: 0.5, 1: 0.5}), "other": other, "once": row({1: 0.1})}
    ).splitlines()
    assert rows[0] == "| full against | other |" and rows[2] == "| loss | + |"
    assert full_against_each({"full": full, "once": row({1: 0.1, 7: 0.1})}) == ""


def test_pieces_of_another_measuring_are_no_results(
    run: Ablations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the new model is being measured, nor after."""
    folder, loopy = untrained(run, "full")
    run.measure(folder, loopy)
    (measured,) = read_results(tmp_path).values()
    pieces = folder / "measured" / "pieces"
    face = json.loads((pieces / "face-00.json").read_text())
    face["made_by"]["model"] = "another"
    (pieces / "face-01.json").write_text(json.dumps(face))  # there were more of them
    with monkeypatch.context() as stopped:
        stopped.setattr(Ablations, "held_out_loss", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.measure(folder, loopy)
    assert read_results(tmp_path) == {} and not (pieces / "face-01.json").exists()
    run.measure(folder, loopy)
    assert str(read_results(tmp_path)) == str({"full/seed-0": measured})


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "full" / "seed-0"
    folder.mkdir(parents=True)
    for written in ({"all": 0.5}, {"made_by": {}, "loss": {"all": 0.5}}):
        (folder / "loss.json").write_text(json.dumps(written))
        assert read_results(tmp_path)["full/seed-0"]["loss"] == {"all": 0.5}


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ("--steps 0", "--steps is 0; give 1 or more"),
        ("--shared-steps 5 0", "--shared-steps is 0; give 1 or more"),
        ("--threads 0", "--threads is 0; give 1 or more"),
        ("--workers 0", "--workers is 0; give 1 or more"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, asked: str, sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence):
        main(["--run-dir", str(tmp_path / "run"), *asked.split()])
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write .*file/run: Not a directory"):
        main(["--run-dir", str(tmp_path / "file" / "run")])


def test_a_run_trains_measures_reports_and_resumes(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(ablations, "LOSS_SAMPLES", 2)
    monkeypatch.setattr("loopy_model.train.loop.VALIDATION_SAMPLES", 1)
    short = "--faces 2 --seconds 0.24 --long-faces 1 --long-seconds 1 --level-faces 0 --steps 1"
    monkeypatch.setattr(ablations, "SETTINGS", f"{short} --audio-ratio 1 --ref-ratio 1")
    command = f"--lab {lab} --run-dir {tmp_path} --seeds 0 --shared-steps 1 1 --steps 1 --variants".split()
    main([*command, "full"])
    main([*command, "full"])
    shown = capsys.readouterr().out
    assert shown.count("|  | full |") == 2 and shown.count(": long-00\n") == 1  # measured once
    results = read_results(tmp_path)["full/seed-0"]
    assert set(results["loss"]) == {"all", "no motion frames", "no audio", "no reference"}
    page = (tmp_path / "ablations.html").read_text()
    assert "full/seed-0/measured/videos/face-00.mp4" in page
    assert (tmp_path / "ablations.md").read_text().count("\n") == len(COLUMNS) + 3
    table = by_variant({"full/seed-0": results, "full/seed-1": results})
    figures.main(["--ablations", str(tmp_path)])
    assert "| lip sync, opening |" in capsys.readouterr().out
    assert len(table["full"]["loss"]) == 2 and "± 0.000" in markdown(table)


def test_half_a_laboratory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no whole laboratory; make it with"):
        main(["--lab", str(tmp_path), "--run-dir", str(tmp_path / "run")])


def test_without_a_laboratory_one_is_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps but the model's, at 64 pixels, beside the results."""
    made = []
    for step in STEPS:
        monkeypatch.setattr(
            Laboratory, step, lambda self, step=step: made.append((self.run_dir, self.size, step))
        )
    with pytest.raises(SystemExit, match="encoders.safetensors"):  # nothing was made here
        main(["--run-dir", str(tmp_path)])
    assert made == [(tmp_path / "lab", 64, step) for step in STEPS[:-2]]
    assert STEPS[-2:] == ("model", "pack")
