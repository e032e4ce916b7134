"""`python -m loopy_model.evaluate figures`: the results that docs/puppet.md and docs/ablations.md show, with their tables.

Nothing is computed anew: it reads what `python -m loopy_model.puppet`, `train --recipe distill`, `evaluate puppet`
and `evaluate ablations` have written in the folders that are named, and leaves out what is not there.
Without any folder it reads docs/figures.json, the results that the documents show.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..prepare.records import write_whole
from ..train.record import read_rows
from ..weights import load_tensors
from . import puppet_tables
from .ablation_report import by_variant, full_against_each, markdown, read_results
from .puppet_report import from_json, made_in_words, read_puppet_results, tables, to_json

STORED = Path(__file__).parents[2] / "docs" / "figures.json"
NETWORKS = ("speech", "autoencoder", "decoder", "meter")  # the names of their logs


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loopy_model.evaluate figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lab", type=Path, help="run directory of `python -m loopy_model.puppet`")
    parser.add_argument("--report", type=Path, help="report folder of `evaluate puppet`")
    parser.add_argument("--student", type=Path, help="run directory of `train --recipe distill`")
    parser.add_argument("--ablations", type=Path, help="run directory of `evaluate ablations`")
    parser.add_argument("--store", action="store_true", help="also put these figures into docs/figures.json")
    return parser


def training(lab: Path) -> Iterator[str]:
    """Result of each network, length and held-out loss of each stage, size of the file."""
    for name in NETWORKS:
        if rows := read_rows(lab / f"{name}.jsonl"):
            values = ", ".join(f"{key} {value:.3f}" for key, value in rows[-1].items() if key != "step")
            yield f"{name}: {rows[-1]['step']} steps; {values}"
    yield from stages(lab / "loopy")
    packed = lab / "loopy-puppet.safetensors"
    if packed.is_file():
        yield f"{packed.name}: {packed.stat().st_size / 1e6:.2f} MB; {_parameters(packed)}"


def stages(run_dir: Path) -> Iterator[str]:
    """Length of each stage of a training, and its held-out losses at the end."""
    rows = read_rows(run_dir / "log.jsonl")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        minutes = sum(row.get("seconds", 0) for row in own) / 60
        losses = [row["validation"] for row in own if "validation" in row]
        yield f"stage {stage}: {own[-1]['step']} steps, {minutes:.0f} min; held-out loss: {_first_and_last(losses)}"


def _first_and_last(losses: list[dict[str, float]]) -> str:
    """Of a stage's validations."""
    if not losses:
        return "not measured yet"
    first, last = losses[0], losses[-1]
    return ", ".join(f"{name} {loss:.4f} (was {first[name]:.4f})" for name, loss in last.items())


def _parameters(checkpoint: Path) -> str:
    """Millions of parameters of each part."""
    counts: dict[str, int] = {}
    for part, tensors in load_tensors(checkpoint).items():
        for name, tensor in tensors.items():
            own = name.split(".")[0] if part == "loopy" else part
            counts[own] = counts.get(own, 0) + tensor.numel()
    return ", ".join(f"{name.replace('_', ' ')} {count / 1e6:.2f} M" for name, count in counts.items())


def gathered(args: argparse.Namespace) -> dict:
    """The figures of each document's part, from the folders that are named. Raises ValueError."""
    found: dict = {}
    if args.lab:
        found["training"] = list(training(args.lab))
    if args.report:
        found["puppet"] = read_puppet_results(args.report)
    if args.student:
        found["student"] = list(stages(args.student))
    if args.ablations:
        found["ablations"] = by_variant(read_results(args.ablations))
    figures = {part: values for part, values in found.items() if values}
    if found and not figures:
        raise ValueError("there are no results yet in what was named; check the paths.")
    return figures


def stored() -> dict:
    return from_json(STORED.read_text()) if STORED.is_file() else {}


def shown(figures: dict) -> Iterator[str]:
    if "training" in figures:
        yield "Training\n\n" + "\n".join(figures["training"]) + "\n"
    if "puppet" in figures:
        yield "Puppet\n\n" + made_in_words(figures["puppet"]) + "\n\n" + tables(figures["puppet"]) + "\n"
        yield puppet_tables.markdown(figures["puppet"]) + "\n"
    if "student" in figures:
        yield "Student\n\n" + "\n".join(figures["student"]) + "\n"
    if "ablations" in figures:
        yield "Ablations\n\n" + markdown(figures["ablations"]) + "\n"
        yield full_against_each(figures["ablations"])


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    for folder in (args.lab, args.report, args.student, args.ablations):
        if folder and not folder.is_dir():
            raise SystemExit(f"there is no folder {folder}; check the path.")
    try:
        figures = gathered(args) or stored()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not figures:
        raise SystemExit(
            f"there is no {STORED}; name a folder with --lab, --report, --student or --ablations."
        )
    if args.store:
        everything = to_json(stored() | figures, indent=1)
        write_whole(STORED, lambda path: path.write_text(everything + "\n"))
    print("\n".join(shown(figures)))
