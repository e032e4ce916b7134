"""`python -m loopy_model.train.report RUN_DIR`: the curves of a run and a page that explains it.

Training calls it too, whenever it saves.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..prepare.records import whole_files
from .record import read_rows

Curve = tuple[np.ndarray, np.ndarray]  # steps, values

PANELS = ("loss", "loss per condition", "held-out loss per condition", "gradient norm", "lip sync")
WINDOW = 50  # steps that a running mean covers at most


def write_report(run_dir: Path) -> None:
    """`report.md` and `curves.png` from what the run has logged so far."""
    stages = by_stage(read_rows(run_dir / "log.jsonl"))
    if stages:
        draw(stages, run_dir / "curves.png")
        (run_dir / "report.md").write_text(_page(run_dir, stages), encoding="utf-8")


def by_stage(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    stages: dict[str, list] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row)
    return stages


def draw(stages: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """One column per stage, one row per quantity."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for own in stages.values() for row in own]
    panels = [panel for panel in PANELS if any(True for _ in _curves(rows, panel))]
    size = (7.5 * len(stages), 2.6 * len(panels))
    figure, axes = plt.subplots(len(panels), len(stages), figsize=size, squeeze=False)
    for column, (stage, rows) in zip(axes.T, stages.items()):
        for axis, panel in zip(column, panels):
            for name, (steps, values) in _curves(rows, panel):
                axis.plot(steps, values, marker="o" if len(steps) < 40 else None, ms=3, label=name)
            axis.set(title=f"stage {stage}: {panel}", xlabel="step")
            axis.set_visible(bool(axis.lines))
            if axis.lines:
                axis.margins(x=0.05, y=0.15)
                axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    partial = picture.with_name(f".{picture.name}")
    figure.savefig(partial, dpi=100)
    plt.close(figure)
    partial.replace(picture)


def _curves(rows: list[dict[str, Any]], panel: str) -> Iterator[tuple[str, Curve]]:
    if panel == "loss":
        yield "running mean", _smooth(_values(rows, "loss"))
        yield "held-out, mean of conditions", _values([_mean_validation(r) for r in rows], "validation")
    elif panel == "gradient norm":
        yield "running mean", _smooth(_values(rows, "grad_norm"))
    elif panel == "lip sync":
        if any("lip_sync" in row for row in rows):
            yield "correlation with the truth", _values(rows, "lip_sync")
    else:
        key = "per_condition" if panel == "loss per condition" else "validation"
        for name in dict.fromkeys(name for row in rows for name in row.get(key, {})):
            curve = _values([row | row[key] for row in rows if key in row], name)
            yield name, curve if key == "validation" else _smooth(curve)


def _mean_validation(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"validation": float(np.mean([*row["validation"].values()]))} if "validation" in row else row


def _values(rows: list[dict[str, Any]], key: str) -> Curve:
    pairs = [(row["step"], row[key]) for row in rows if key in row]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def _smooth(curve: Curve) -> Curve:
    """Running mean over as many values as there are, at most WINDOW."""
    steps, values = curve
    width = min(WINDOW, max(1, len(values) // 4))
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid") if len(values) else values


def _page(run_dir: Path, stages: dict[str, list[dict[str, Any]]]) -> str:
    recipe = json.loads((run_dir / "recipe.json").read_text())
    lines = [f"# Training run: recipe {recipe['name']}, seed {recipe['seed']}", ""]
    lines += [_data_line(split) for split in _read_json(run_dir / "data.json")]
    lines += [""] + [_result_line(path) for path in whole_files(run_dir, ".safetensors")] + [""]
    lines += [
        "| stage | steps | batch | seconds per step | minutes of steps | loss, running mean | lip sync |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [_stage_line(planned, stages.get(planned["name"], [])) for planned in recipe["stages"]]
    lines += ["", "Held-out loss, the same samples and noise under each condition:", ""]
    lines += ["| stage | condition | before | now |", "|---|---|---|---|"]
    for stage, rows in stages.items():
        lines += _validation_lines(stage, [row["validation"] for row in rows if "validation" in row])
    lines += ["", "![Curves](curves.png)", ""]
    for sheet in sorted((run_dir / "previews").glob("*.jpg"), key=lambda path: path.stat().st_mtime)[-1:]:
        lines += [f"![Preview](previews/{sheet.name})", "", "Generated (above) and true frames (below)."]
    return "\n".join(lines) + "\n"


def _data_line(split: dict[str, Any]) -> str:
    return "- {split}: {clips} clips, {minutes} minutes, {silent} without sound, from {folder}".format(
        **split
    )


def _result_line(path: Path) -> str:
    if path.name == "adapter.safetensors":
        return (
            f"Result: `{path.name}`. Put it into ComfyUI's `models/loras` and pick it in Load Loopy Model, or "
            f"`python -m loopy_model.cli generate ... --adapter {path}`."
        )
    return f"Result: `{path.name}`. Put it into ComfyUI's `models/loopy`."


def _stage_line(planned: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    loss, seconds = _smooth(_values(rows, "loss"))[1], _values(rows, "seconds")[1]
    lips = [f"{row['lip_sync']:.3f}" for row in rows if "lip_sync" in row]
    cells = [
        planned["name"],
        f"{max((row['step'] for row in rows), default=0)} of {planned['steps']}",
        planned["batch"],
        f"{np.median(seconds):.3g}" if len(seconds) else "",
        f"{seconds.sum() / 60:.1f}" if len(seconds) else "",
        f"{loss[-1]:.4f}" if len(loss) else "",
        " to ".join([*lips[:1], *lips[1:][-1:]]),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _validation_lines(stage: str, found: list[dict[str, float]]) -> list[str]:
    if not found:
        return []
    return [f"| {stage} | {name} | {loss:.4f} | {found[-1][name]:.4f} |" for name, loss in found[0].items()]


def _read_json(path: Path) -> list:
    return json.loads(path.read_text()) if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    write_report(parser.parse_args().run_dir)


if __name__ == "__main__":
    main()
