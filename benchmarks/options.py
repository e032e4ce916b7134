"""What each sampling option costs in quality and saves in time, on the bundled model.

    python -m benchmarks.options --report runs/options
    python -m benchmarks.options --report runs/options --student adapter.safetensors

Held-out faces with unheard voices. Lip sync and identity as `loopy_model.evaluate puppet` measures them;
the distance to the exact video (25 steps of DDIM, same noise) in dB. Writes options.json and options.md.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from loopy_model.config import PUPPET_RATIOS, SAMPLE_RATE
from loopy_model.evaluate.held_out import (
    HeldOut,
    correlation,
    flat_noise,
    held_out,
    identity_error,
    load_meter,
    measure,
)
from loopy_model.guidance import Guidance, Sparing
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.puppet.motion import MOTION
from loopy_model.sampling import SamplingOptions

from .sampling import rows_of

GUIDANCE = Guidance(*PUPPET_RATIOS)


@dataclass(frozen=True)
class Choice:
    """One way to sample."""

    steps: int = 25
    options: SamplingOptions = SamplingOptions()
    guidance: Guidance = GUIDANCE
    is_student: bool = False


CHOICES = {
    "exact: ddim, 25 steps": Choice(),
    "ddim, 12 steps": Choice(12),
    "ddim, 8 steps": Choice(8),
    "dpm++ 2m, 12 steps": Choice(12, SamplingOptions("dpm++ 2m")),
    "dpm++ 2m, 8 steps": Choice(8, SamplingOptions("dpm++ 2m")),
    "unipc, 12 steps": Choice(12, SamplingOptions("unipc")),
    "unipc, 8 steps": Choice(8, SamplingOptions("unipc")),
    "guidance in the first 60 %": Choice(25, SamplingOptions(sparing=Sparing(end=0.6))),
    "guidance in every 2nd step": Choice(25, SamplingOptions(sparing=Sparing(every=2))),
    "guidance in every 4th step": Choice(25, SamplingOptions(sparing=Sparing(every=4))),
    "deep features in every 2nd step": Choice(25, SamplingOptions(sparing=Sparing(deep_every=2))),
    "deep features in every 3rd step": Choice(25, SamplingOptions(sparing=Sparing(deep_every=3))),
    "dpm++ 2m, 12 steps, every 2nd guided": Choice(12, SamplingOptions("dpm++ 2m", sparing=Sparing(every=2))),
    "eta 1": Choice(25, SamplingOptions(eta=1.0)),
}


def choices_of_student(steps: int) -> dict[str, Choice]:
    """A student of so many steps, and what its teacher makes of as many."""
    return {
        f"ddim, {steps} steps": Choice(steps),
        f"ddim, {steps} steps, one branch": Choice(steps, guidance=Guidance(1.0, 1.0)),
        f"distilled, {steps} steps, one branch": Choice(steps, guidance=Guidance(1.0, 1.0), is_student=True),
    }


@dataclass(frozen=True)
class Made:
    """A face's video by one choice."""

    frames: Tensor  # (F, S, S, 3)
    seconds: float


def make(pipeline: Pipeline, truth: HeldOut, number: int, choice: Choice) -> Made:
    began = time.perf_counter()
    how = (choice.guidance, choice.steps, number)
    frames = pipeline(truth.portrait, truth.waveform, SAMPLE_RATE, *how, options=choice.options)
    return Made(frames, time.perf_counter() - began)


def run(model: Path, faces: int, seconds: float, student: Path | None = None) -> dict[str, dict[str, float]]:
    """Per choice the mean over faces; every face is made by all choices before the next, so that a machine
    that is slow for a while is slow for all."""
    pipeline, meter = Pipeline(model), load_meter()
    choices, taught = CHOICES, pipeline
    if student:
        taught = Pipeline(model, student)
        choices = CHOICES | choices_of_student(taught.config.diffusion.student_steps)
    rows: dict[str, list[list[float]]] = {name: [] for name in choices}
    for number in range(faces):
        truth = held_out(number, round(seconds * pipeline.config.clip.fps), pipeline.config.image_size)
        exact: Made | None = None
        for name, choice in choices.items():
            made = make(taught if choice.is_student else pipeline, truth, number, choice)
            exact = exact or made
            read = measure(meter, made.frames)
            lips = [correlation(read[:, i], truth.motion[:, i]) for i in map(MOTION.index, ("open", "width"))]
            error = (made.frames - exact.frames).square().mean().clamp(min=1e-10)
            rows[name].append(
                [
                    made.seconds / exact.seconds,
                    *lips,
                    identity_error(made.frames, truth.portrait),
                    flat_noise(made.frames),
                    float(-10 * error.log10()),
                ]
            )
            print(f"face {number}, {name}", flush=True)
    columns = ("time", "opening", "width", "identity_error", "flat_noise", "db_to_exact")
    return {name: dict(zip(columns, np.mean(values, 0).tolist())) for name, values in rows.items()}


def table(result: dict[str, dict[str, float]]) -> str:
    head = ["", "time", "mouth opening", "mouth width", "identity error", "flat noise", "dB to exact"]
    rows = [
        [name, f"{row['time']:.2f}", *(f"{row[key]:.3f}" for key in ("opening", "width"))]
        + [f"{row[key]:.4f}" for key in ("identity_error", "flat_noise")]
        + [f"{row['db_to_exact']:.1f}" if row["db_to_exact"] < 99 else "exact"]
        for name, row in result.items()
    ]
    return "\n".join(rows_of(head, rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, required=True, help="folder for what was measured")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="checkpoint (the bundled puppet)")
    parser.add_argument("--faces", type=int, default=8, help="each with its own sentences (8)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each face's video (3)")
    parser.add_argument("--student", type=Path, help="adapter that recipe distill made of the model")
    args = parser.parse_args(arguments)
    args.report.mkdir(parents=True, exist_ok=True)
    result = run(args.model, args.faces, args.seconds, args.student)
    (args.report / "options.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (args.report / "options.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
