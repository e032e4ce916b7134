"""Results of the ablations -> one table (Markdown, HTML) and the curves of the held-out loss."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..prepare.records import write_whole
from ..train.record import read_rows
from . import page
from .puppet_report import SHEET, SHEET_CAPTION, rows_of, summarise
from .variants import VARIANTS, folder_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS, MEASURED = "loss.json", "measured"  # below a variant's and seed's folder
# Column -> where its figure stands in a variant's results.
COLUMNS = {
    "loss": ("loss", "all"),
    "loss without motion frames": ("loss", "no motion frames"),
    "loss without audio": ("loss", "no audio"),
    "loss without reference": ("loss", "no reference"),
    "lip sync, opening": ("lip_sync", "generated", "open"),
    "lip sync, width": ("lip_sync", "generated", "width"),
    "identity error": ("picture", "identity"),
    "Glo, truth's": ("movement", "glo_truth"),
    "Glo": ("movement", "glo"),
    "DGlo": ("movement", "dglo"),
    "Exp, truth's": ("movement", "exp_truth"),
    "Exp": ("movement", "exp"),
    "DExp": ("movement", "dexp"),
    "head goes on, correlation": ("continuation", "correlation"),
    "head goes on, error": ("continuation", "error"),
    "blink interval off by": ("rhythm", "blink_interval", "error"),
    "faces without blinks": ("rhythm", "blink_interval", "without_rhythm"),
    "sway period off by": ("rhythm", "sway_period", "error"),
    "faces without sway": ("rhythm", "sway_period", "without_rhythm"),
    "drift of the mean": ("drift", "equal_pose", "mean"),
    "drift of the contrast": ("drift", "equal_pose", "contrast"),
    "drift of the sharpness": ("drift", "equal_pose", "sharpness"),
}


def read_results(run_dir: Path) -> dict[str, dict]:
    """What there is of all variants and seeds, by "variant/seed-n", in the order of `VARIANTS`."""
    results = {}
    for variant in VARIANTS:
        for path in sorted(run_dir.glob(f"{folder_of(variant, 0).split('/')[0]}/seed-*/{LOSS}")):
            pieces = {
                p.stem: json.loads(p.read_text()) for p in (path.parent / MEASURED / "pieces").glob("*.json")
            }
            found = {"loss": json.loads(path.read_text())["loss"], **summarise(dict(sorted(pieces.items())))}
            results[path.parent.relative_to(run_dir).as_posix()] = found
    return results


def by_variant(results: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """ "variant/seed-n" -> results, to variant -> column -> one value a seed."""
    table: dict[str, dict[str, list[float]]] = {}
    for name, values in results.items():
        row = table.setdefault(name.split("/")[0].replace("_", " "), {column: [] for column in COLUMNS})
        for column, path in COLUMNS.items():
            row[column].append(_at(values, path))
    return table


def _at(values: dict, path: tuple[str, ...]) -> float:
    for key in path:
        values = values[key]
    return values


def spread(values: list[float]) -> str:
    """Mean of the seeds, and half the distance between the smallest and the largest; NaN stays NaN."""
    mean, half = float(np.mean(values)), float(np.ptp(values)) / 2
    return f"{mean:.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:.3f}"


def markdown(table: dict[str, dict[str, list[float]]]) -> str:
    """One row a figure, one column a variant."""
    variants = list(table)
    lines = ["|  | " + " | ".join(variants) + " |", "| --" * (len(variants) + 1) + " |"]
    lines.append("| seeds | " + " | ".join(str(len(table[v]["loss"])) for v in variants) + " |")
    for column in COLUMNS:
        lines.append(f"| {column} | " + " | ".join(spread(table[v][column]) for v in variants) + " |")
    return "\n".join(lines)


def write_report(run_dir: Path, results: dict[str, dict]) -> str:
    """`run_dir`/ablations.md, .png and .html; returns the Markdown table."""
    table = by_variant(results)
    text = markdown(table)
    write_whole(run_dir / "ablations.md", lambda path: path.write_text(text + "\n"))
    drawn = _curves(run_dir, results)
    write_whole(run_dir / "ablations.png", lambda path: drawn.savefig(path, dpi=110))
    rows = ([column, *(spread(row[column]) for row in table.values())] for column in COLUMNS)
    body = [page.table(["", *table], rows), page.figure(drawn, "Held-out loss in training")]
    for name, values in results.items():
        body += [page.heading(name, 3), page.table(("", "figure", "value"), rows_of(values))]
        measured = run_dir / name / MEASURED
        if (measured / SHEET).is_file():
            body.append(page.picture((measured / SHEET).read_bytes(), SHEET_CAPTION))
        videos = sorted((measured / "videos").glob("*.mp4"))
        body.append(page.videos((path.stem, path.relative_to(run_dir).as_posix()) for path in videos[:3]))
    page.write_page(run_dir / "ablations.html", "The paper's ablations in miniature", body)
    return text


def _curves(run_dir: Path, results: dict[str, dict]) -> "Figure":
    """Held-out loss of every run over the steps of its own training."""
    from matplotlib.figure import Figure

    drawn = Figure((10, 5), layout="constrained")
    axis = drawn.subplots()
    variants = list(dict.fromkeys(name.split("/")[0] for name in results))
    for name in results:
        rows = [row for row in read_rows(run_dir / name / "log.jsonl") if "validation" in row]
        variant, seed = name.split("/")
        first = seed == min(n.split("/")[1] for n in results if n.startswith(f"{variant}/"))
        axis.plot(
            [row["step"] for row in rows],
            [row["validation"]["all"] for row in rows],
            color=f"C{variants.index(variant)}",
            label=variant.replace("_", " ") if first else None,
            lw=1,
        )
    axis.set(xlabel="step", ylabel="held-out loss, all conditions", yscale="log")
    axis.legend(fontsize=8)
    return drawn
