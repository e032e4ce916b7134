"""`evaluate figures` prints what the other commands have written, and nothing else."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("accelerate")

from loopy_model.evaluate import figures, puppet, puppet_tables
from loopy_model.evaluate.ablation_report import COLUMNS, SEEDS
from loopy_model.evaluate.drift import STATISTICS
from loopy_model.evaluate.figures import main
from loopy_model.evaluate.held_out import METER
from loopy_model.evaluate.variants import VARIANTS
from loopy_model.pipeline import BUNDLED
from loopy_model.weights import content_digest


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    (tmp_path / "loopy").mkdir()
    rows = [{"step": 200, "loss": 0.5, "open": 0.8}, {"step": 400, "loss": 0.25, "open": 0.9125}]
    (tmp_path / "speech.jsonl").write_text("\n".join(map(json.dumps, rows)))
    log = [
        {"stage": "one", "step": 1, "loss": 1.0, "seconds": 90.0},
        {"stage": "one", "step": 2, "loss": 0.9, "seconds": 90.0},
        {"stage": "one", "step": 2, "validation": {"all": 0.75}},
        {"stage": "two", "step": 1, "validation": {"all": 0.5, "no audio": 0.625}, "seconds": 60.0},
    ]
    (tmp_path / "loopy" / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    return tmp_path


def test_the_training_in_figures(lab: Path, capsys: pytest.CaptureFixture) -> None:
    main(["--lab", str(lab)])
    shown = capsys.readouterr().out
    assert "speech: 400 steps; loss 0.250, open 0.912" in shown
    assert "stage one: 2 steps, 3 min; held-out loss: all 0.7500 (was 0.7500)" in shown
    assert (
        "stage two: 1 steps, 1 min; held-out loss: all 0.5000 (was 0.5000), no audio 0.6250 (was 0.6250)"
        in shown
    )
    assert "Puppet" not in shown and "Ablations" not in shown
    main(["--student", str(lab / "loopy")])
    assert capsys.readouterr().out.startswith(
        "Student\n\nstage one: 2 steps, 3 min; held-out loss: all 0.7500"
    )


def test_the_results_in_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = {"faces": 16, "lip_sync": {"generated": {"open": 0.91234}}, "glo_by_level": {"0.50": 1.25}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    main(["--report", str(tmp_path)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lip", "sync", "generated", "open", "0.9123"] in lines
    assert ["glo", "by", "level", "0.50", "1.2500"] in lines


def test_figures_are_stored_part_by_part_and_shown_again(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "STORED", tmp_path / "figures.json")
    with pytest.raises(SystemExit, match="there is no .*figures.json; name a folder with --lab"):
        main([])
    (tmp_path / "results.json").write_text(json.dumps({"faces": 1, "lip_sync": {"generated": {"open": 0.5}}}))
    main(["--lab", str(lab), "--store"])
    main(["--report", str(tmp_path), "--store"])
    capsys.readouterr()
    main([])
    shown = capsys.readouterr().out
    assert "speech: 400 steps" in shown and "0.5000" in shown and "Ablations" not in shown


def test_what_is_stored_has_every_figure_of_the_documents() -> None:
    known = figures.stored()
    assert {"lip_sync", "glo_by_level", "exp_by_level", "continuation", "rhythm", "drift"} <= known[
        "puppet"
    ].keys()
    assert list(known["ablations"]) == list(VARIANTS)
    assert all(list(row) == [SEEDS, *COLUMNS] for row in known["ablations"].values())


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no folder .*nothing; check the path"):
        main(["--lab", str(tmp_path / "nothing")])


def test_a_folder_without_results_is_one_sentence(tmp_path: Path) -> None:
    """Not the figures of the documents, which are of another model."""
    for option in ("--report", "--lab", "--student", "--ablations"):
        with pytest.raises(SystemExit, match="there are no results yet in what was named; check the paths"):
            main([option, str(tmp_path)])


@pytest.mark.parametrize("others", ['{"format": "loopy-evaluation-1"}', "[]", "{"])
def test_results_of_something_else_are_one_sentence(tmp_path: Path, others: str) -> None:
    (tmp_path / "results.json").write_text(others)
    with pytest.raises(SystemExit, match="results.json holds other results than of `evaluate puppet`"):
        main(["--report", str(tmp_path)])


def test_a_training_before_its_first_validation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"stage": "one", "step": 7, "loss": 1.0, "seconds": 60.0}))
    main(["--student", str(tmp_path)])
    assert "stage one: 7 steps, 1 min; held-out loss: not measured yet" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, said", [({"made_by": {"long_seconds": 90.0}}, "90 s"), ({}, "the video")])
def test_a_trend_is_over_what_was_measured(seconds: dict, said: str) -> None:
    row = {key: 0.01 for name in STATISTICS for key in (name, f"{name}_trend")}
    table = puppet_tables.markdown({**seconds, "drift": dict.fromkeys(puppet_tables.DRIFTS, row)})
    assert f"| largest distance from the first clip (trend over {said}) |" in table


def test_what_is_stored_was_measured_as_the_command_does_by_itself() -> None:
    """Of the bundled model, read by the bundled meter."""
    asked = puppet.build_parser().parse_args(["--report", "anywhere"])
    assert figures.stored()["puppet"]["made_by"] == {
        "version": puppet.VERSION,
        "model": content_digest(BUNDLED)[:16],
        "meter": content_digest(METER)[:16],
        "sampling": [asked.steps, asked.audio_ratio, asked.ref_ratio],
        "seconds": asked.seconds,
        "long_seconds": asked.long_seconds,
        "level_seconds": asked.level_seconds,
        "first_face": asked.first_face,
    }
    assert figures.stored()["puppet"]["faces"] == asked.faces


def test_what_is_asked_of_the_bundled_model() -> None:
    """By the figures of its documents; `evaluate puppet` takes half an hour to measure them anew."""
    found = figures.stored()["puppet"]
    lips, rhythm, turns = (
        found["lip_sync"]["generated"],
        found["rhythm"],
        found["drift_over_turns"]["generated"],
    )
    assert found["faces"] == 16 and lips["open"] >= 0.9 and lips["width"] >= 0.6
    for levels in (found["glo_by_level"], found["exp_by_level"]):
        values = list(levels.values())
        assert len(values) == 5 and all(low < high for low, high in zip(values, values[1:]))
    for key in ("blink_interval", "sway_period"):
        assert rhythm[key]["error"] < 0.2 < rhythm[key]["memoryless"] and rhythm[key]["without_rhythm"] == 0
    assert max(turns.values()) < 0.05  # ten seconds against the first ten; clip by clip the truth varies more
    assert found["seconds_per_second"]["2 threads 2 branches"] < 5
    assert BUNDLED.stat().st_size <= 12e6


@pytest.mark.parametrize("document, section", [("puppet.md", "## Result"), ("ablations.md", "## Results")])
def test_the_command_prints_every_figure_of_the_documents(
    document: str, section: str, capsys: pytest.CaptureFixture
) -> None:
    main([])
    output = capsys.readouterr().out
    printed = [float(number) for number in re.findall(r"\d+\.\d+", output)]
    text = (figures.STORED.parent / document).read_text(encoding="utf-8")
    text = text.partition(f"{section}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.replace("**", "").splitlines() if line.startswith("|")]
    assert len(rows) > 20 and not set(rows) - set(output.splitlines())
    given = {"0.25", "0.75", "1.5"}  # levels, and the ratios of the guidance
    missing = []
    for number, percent in re.findall(r"(?<![\w.])(\d+\.\d+)(\s%)?", text):
        digits, scales = len(number.partition(".")[2]), (1, 100) if percent else (1,)
        if number not in given | {f"{value * scale:.{digits}f}" for value in printed for scale in scales}:
            missing.append(number + percent)
    assert not missing
