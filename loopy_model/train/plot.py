"""`python -m loopy_model.train.plot RUN_DIR PICTURE`: the curves of a run."""

import argparse
import json
from pathlib import Path

import numpy as np

SMOOTH = 50  # steps that the running mean of the loss covers


def read_log(run_dir: Path) -> dict[str, list[dict]]:
    """The rows of log.jsonl by stage; a step that was run again after a resume counts once."""
    stages: dict[str, dict] = {}
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        stages.setdefault(row["stage"], {})[row["step"], "validation" in row] = row
    return {stage: [rows[key] for key in sorted(rows)] for stage, rows in stages.items()}


def draw(stages: dict[str, list[dict]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(stages), figsize=(5 * len(stages), 3.2), squeeze=False)
    for axis, (stage, rows) in zip(axes[0], stages.items()):
        loss = np.array([row["loss"] for row in rows if "loss" in row])
        smooth = np.convolve(loss, np.ones(SMOOTH) / SMOOTH, "valid")
        axis.plot(np.arange(len(smooth)) + SMOOTH, smooth, label=f"training, mean of {SMOOTH} steps")
        held = [(row["step"], row["validation"]) for row in rows if "validation" in row]
        axis.plot(*zip(*held), "o-", ms=3, label="held-out clips, averaged weights")
        axis.set(title=f"stage {stage}", xlabel="step", ylabel="mean squared error", yscale="log")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    draw(read_log(args.run_dir), args.picture)


if __name__ == "__main__":
    main()
