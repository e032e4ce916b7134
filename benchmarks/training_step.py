"""Time of one training step at full width against the machine's own matrix rate, as JSON.

    python -m benchmarks.training_step --stage one --size 512
    python -m benchmarks.training_step --stage two --size 256 --checkpointing
    python -m benchmarks.training_step --stage two --device cuda --precision bf16 --checkpointing

One sample, forward and backward, random values; neither optimiser nor data. The operations are
counted (loopy_model.train.plan), and the rate of a large matrix product is measured in the same run.
"""

import argparse
import json
from dataclasses import replace

import torch

from loopy_model.config import LOOPY, PUPPET, LoopyConfig
from loopy_model.model import Loopy
from loopy_model.train.lora import add_low_rank, store_frozen_layers
from loopy_model.train.objective import Batch, Draws, Objective
from loopy_model.train.plan import cost_of, peak_memory
from loopy_model.train.stages import STAGE_ONE, STAGE_TWO, Stage

from .measure import PRECISIONS, in_turns, machine, matrix_rate


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("loopy", "puppet"), default="loopy")
    parser.add_argument("--stage", choices=("one", "two"), default="two")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--low-rank", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=1, help="timed steps, after one to warm up")
    return parser


def sample(config: LoopyConfig, stage: Stage, count: int, device: str) -> tuple[Batch, Draws]:
    """Random values, every condition given: the dearest case."""
    clip, audio, side = config.clip, config.audio, config.latent_size
    latents, frames = (config.unet.latent_channels, side, side), 1 if stage.spatial_only else clip.frames

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, device=device)

    given = torch.ones(count, dtype=torch.bool, device=device)
    batch = Batch(
        clip=randn(frames, *latents),
        reference=randn(*latents),
        motion=randn(clip.motion_frames, *latents),
        present=given[:, None].expand(-1, clip.motion_frames),
        windows=randn(frames, clip.audio_window, audio.layers, audio.width),
        movement=randn(),
        expression=randn(),
    )
    timestep = torch.full((count,), 500, device=device)
    noise = randn(frames, *latents)
    return batch, Draws(timestep, given, given, given, torch.zeros_like(timestep), noise)


def main() -> None:
    args = build_parser().parse_args()
    config = replace({"loopy": LOOPY, "puppet": PUPPET}[args.model], image_size=args.size)
    stage, dtype = {"one": STAGE_ONE, "two": STAGE_TWO}[args.stage], PRECISIONS[args.precision]
    model = Loopy(config)
    if args.low_rank:
        add_low_rank(model, args.low_rank)
        store_frozen_layers(model, dtype)
    for net in (model.reference_unet, model.denoising_unet):
        for block in net.blocks():
            block.checkpointing = args.checkpointing
    objective = Objective(model).to(args.device, memory_format=torch.channels_last)
    batch, draws = sample(config, stage, args.batch, args.device)

    def step() -> None:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            loss = objective(batch, draws, stage.spatial_only).float().mean()
        loss.backward()
        objective.zero_grad(set_to_none=False)

    cost = cost_of(config, stage, args.low_rank, args.checkpointing)
    seconds = in_turns({"step": step}, args.device, args.steps)["step"]
    rate = matrix_rate(args.device, dtype)
    done = cost.flop * args.batch / seconds
    result = {
        "model": args.model,
        "stage": args.stage,
        "size": args.size,
        "batch": args.batch,
        **machine(args.device),
        "precision": args.precision,
        "checkpointing": args.checkpointing,
        "low_rank": args.low_rank,
        "tflop_per_sample": round(cost.flop / 1e12, 3),
        "seconds_per_step": round(seconds, 3),
        "gflop_per_second": round(done / 1e9, 1),
        "matrix_gflop_per_second": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(done / rate, 3),
        "peak_memory_gb": round(peak_memory(args.device) / 1e9, 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
