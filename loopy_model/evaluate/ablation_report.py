"""Results of the ablations -> one table (Markdown, HTML) and the curves of the held-out loss."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..prepare.records import whole_files, write_whole
from ..train.record import read_rows
from . import page
from .puppet_report import SHEET, SHEET_CAPTION, from_json, rows_of, summarise, videos_of
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

# Columns in which variants are ranked -> whether more is better: all but Glo and Exp, of which more is not better.
RANKED = {
    "loss": False,
    "loss without motion frames": False,
    "loss without audio": False,
    "loss without reference": False,
    "lip sync, opening": True,
    "lip sync, width": True,
    "identity error": False,
    "DGlo": False,
    "DExp": False,
    "head goes on, correlation": True,
    "head goes on, error": False,
    "blink interval off by": False,
    "faces without blinks": False,
    "sway period off by": False,
    "faces without sway": False,
    "drift of the mean": False,
    "drift of the contrast": False,
    "drift of the sharpness": False,
}
FULL, SEEDS = "full", "seeds"


def read_results(run_dir: Path) -> dict[str, dict]:
    """What there is of all variants and seeds, by "variant/seed-n", in the order of `VARIANTS`."""
    results = {}
    for variant in VARIANTS:
        for path in sorted(run_dir.glob(f"{folder_of(variant, 0).split('/')[0]}/seed-*/{LOSS}")):
            files = whole_files(path.parent / MEASURED / "pieces", ".json")
            known = json.loads(path.read_text())
            found = {
                "loss": known.get("loss", known),  # earlier versions wrote nothing else
                **summarise({piece.stem: from_json(piece.read_text()) for piece in files}),
            }
            results[path.parent.relative_to(run_dir).as_posix()] = found
    return results


def by_variant(results: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """ "variant/seed-n" -> results, to variant -> column -> one value a seed; the first column is the seeds."""
    table: dict[str, dict[str, list[float]]] = {}
    for name, values in results.items():
        variant, seed = name.split("/seed-")
        row = table.setdefault(variant.replace("_", " "), {column: [] for column in (SEEDS, *COLUMNS)})
        row[SEEDS].append(int(seed))
        for column, path in COLUMNS.items():
            row[column].append(_at(values, path))
    return table


def _at(values: dict, path: tuple[str, ...]) -> float:
    for key in path:
        values = values[key]
    return values


def spread(values: list[float], digits: int = 3) -> str:
    """Mean of the seeds, and half the distance between the smallest and the largest; NaN stays NaN."""
    mean, half = float(np.mean(values)), float(np.ptp(values)) / 2
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def markdown(table: dict[str, dict[str, list[float]]]) -> str:
    """One row a figure, one column a variant."""
    variants = list(table)
    lines = [_line("", variants), _line("--", ["--"] * len(variants))]
    lines.append(_line(SEEDS, (str(len(table[v][SEEDS])) for v in variants)))
    for column in COLUMNS:
        digits = 4 if "Exp" in column else 3
        lines.append(_line(column, (spread(table[v][column], digits) for v in variants)))
    return "\n".join(lines)


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def full_against_each(table: dict[str, dict[str, list[float]]]) -> str:
    """Where the full model is better (+) or worse (-) than a variant with every seed that both have, by more than
    the seeds of either lie apart; without the variants of fewer than two such seeds, "" where none is left."""
    shared = {name: _shared_seeds(table[FULL], row) for name, row in table.items()} if FULL in table else {}
    others = [name for name, seeds in shared.items() if name != FULL and len(seeds) > 1]
    if not others:
        return ""
    lines = [_line("full against", others), _line("--", ["--"] * len(others))]
    for column, more_is_better in RANKED.items():
        pairs = (
            [_at_seeds(table[name], column, shared[other]) for name in (FULL, other)] for other in others
        )
        lines.append(_line(column, (_sign(*pair, more_is_better) for pair in pairs)))
    return "\n".join(lines)


def _shared_seeds(one: dict[str, list], other: dict[str, list]) -> list[int]:
    return [seed for seed in one[SEEDS] if seed in other[SEEDS]]


def _at_seeds(row: dict[str, list], column: str, seeds: list[int]) -> list[float]:
    return [row[column][row[SEEDS].index(seed)] for seed in seeds]


def _sign(full: list[float], other: list[float], more_is_better: bool) -> str:
    """Of figures by seed, "" where the difference does not count."""
    apart = np.subtract(full, other) if more_is_better else np.subtract(other, full)
    if len(set(np.sign(apart))) > 1 or abs(apart.mean()) <= max(np.ptp(full), np.ptp(other)):
        return ""
    return "+" if apart.mean() > 0 else "-"


def write_report(run_dir: Path, results: dict[str, dict]) -> str:
    """`run_dir`/ablations.md, .png and .html; returns the Markdown table."""
    table = by_variant(results)
    text = "\n\n".join(filter(None, [markdown(table), full_against_each(table)]))
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
        pieces = (piece.stem for piece in whole_files(measured / "pieces", ".json"))
        shown = islice(videos_of(measured, pieces), 3)
        body.append(page.videos((stem, f"{name}/{MEASURED}/{source}") for stem, source in shown))
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
