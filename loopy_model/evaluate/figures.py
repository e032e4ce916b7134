"""`python -m loopy_model.evaluate figures`: every figure of docs/puppet.md and docs/ablations.md, from results.

Nothing is computed anew: it reads what `python -m loopy_model.puppet`, `evaluate puppet` and
`evaluate ablations` have written, and leaves out what is not there.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..train.record import read_rows
from ..weights import load_tensors
from .ablation_report import by_variant, markdown, read_results
from .puppet_report import tables

NETWORKS = ("speech", "autoencoder", "decoder", "meter")  # the names of their logs


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loopy_model.evaluate figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lab", type=Path, help="run directory of `python -m loopy_model.puppet`")
    parser.add_argument("--report", type=Path, help="report folder of `evaluate puppet`")
    parser.add_argument("--ablations", type=Path, help="run directory of `evaluate ablations`")
    return parser


def training(lab: Path) -> Iterator[str]:
    """Result of each network, length and held-out loss of each stage, size of the file."""
    for name in NETWORKS:
        if rows := read_rows(lab / f"{name}.jsonl"):
            values = ", ".join(f"{key} {value:.3f}" for key, value in rows[-1].items() if key != "step")
            yield f"{name}: {rows[-1]['step']} steps; {values}"
    rows = read_rows(lab / "loopy" / "log.jsonl")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        minutes = sum(row.get("seconds", 0) for row in own) / 60
        losses = [row["validation"] for row in own if "validation" in row][-1]
        shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        yield f"stage {stage}: {own[-1]['step']} steps, {minutes:.0f} min; held-out loss: {shown}"
    packed = lab / "loopy-puppet.safetensors"
    if packed.is_file():
        yield f"{packed.name}: {packed.stat().st_size / 1e6:.2f} MB; {_parameters(packed)}"


def _parameters(checkpoint: Path) -> str:
    """Millions of parameters of each part."""
    counts: dict[str, int] = {}
    for part, tensors in load_tensors(checkpoint).items():
        for name, tensor in tensors.items():
            own = name.split(".")[0] if part == "loopy" else part
            counts[own] = counts.get(own, 0) + tensor.numel()
    return ", ".join(f"{name.replace('_', ' ')} {count / 1e6:.2f} M" for name, count in counts.items())


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    for folder in (args.lab, args.report, args.ablations):
        if folder and not folder.is_dir():
            raise SystemExit(f"there is no folder {folder}; check the path.")
    if args.lab:
        print("Training\n\n" + "\n".join(training(args.lab)) + "\n")
    if args.report:
        print("Puppet\n\n" + tables(json.loads((args.report / "results.json").read_text())) + "\n")
    if args.ablations:
        print("Ablations\n\n" + markdown(by_variant(read_results(args.ablations))))
