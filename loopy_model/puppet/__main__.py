"""`python -m loopy_model.puppet --run-dir DIR`: the bundled model from nothing.

Draws and encodes the clips, trains the small networks and the model itself, and puts everything into
DIR/loopy-puppet.safetensors. A run that was stopped goes on with the same command.
"""

import argparse
from pathlib import Path

import torch

from ..config import PUPPET
from ..prepare.records import CannotWrite
from .laboratory import STEPS, Laboratory, check_counts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loopy_model.puppet", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="everything is written here")
    parser.add_argument(
        "--only", nargs="+", choices=STEPS, default=STEPS, help="run these steps (default: all that are left)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=PUPPET.image_size,
        help=f"pixels of a picture's side ({PUPPET.image_size}); the ablations use 64",
    )
    parser.add_argument("--clips", type=int, default=700, help="training clips of 12 s (700)")
    parser.add_argument("--test-clips", type=int, default=16, help="held-out clips of 12 s (16)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that encode clips, and train the model if they divide its batches (1)",
    )
    return parser


def main() -> None:
    options = build_parser().parse_args()
    try:
        check_counts({"threads": options.threads})
        torch.set_num_threads(options.threads)
        laboratory = Laboratory(
            options.run_dir, options.size, options.clips, options.test_clips, options.workers
        )
        laboratory.make(options.only)
    except (ValueError, CannotWrite) as error:  # a sentence: the directory was begun otherwise, or so
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
