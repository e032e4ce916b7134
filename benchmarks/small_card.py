"""What a clip takes in ComfyUI itself, on a card that has only so much memory.

    python -m benchmarks.small_card --report runs/small_card --gigabytes 4
    python -m benchmarks.small_card --report runs/whole_card

The newest ComfyUI that the pack is tested with manages the memory, as with --disable-dynamic-vram: what does
not fit is streamed, and the reference net leaves the card when it has read. torch refuses to go beyond the
limit, so a card of any size can play a smaller one. Random weights and values. Writes benchmark.json and
benchmark.md.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from loopy_model.config import LoopyConfig
from loopy_model.model import Loopy
from loopy_model.train.plan import peak_memory
from scripts.environment import NEWEST, get_host
from scripts.host import make_base

from .measure import machine
from .sampling import rows_of
from .subjects import BRANCHES, sized

CLIPS = 2  # the second one has motion features of the first


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, required=True, help="folder for what was measured")
    parser.add_argument("--gigabytes", type=float, help="of the card (default: all that it has)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--width", choices=("reduced", "full"), default="full")
    parser.add_argument("--size", type=int, default=64, help="latent cells a side (64)")
    parser.add_argument("--steps", type=int, default=25)
    return parser


def enter_host(gigabytes: float | None, base: Path) -> ModuleType:
    """Makes this process a ComfyUI with the pack, without its server -> the pack's sampler module."""
    arguments = ["--base-directory", str(base)]
    if not torch.cuda.is_available():
        arguments.append("--cpu")
    elif gigabytes is not None:
        all_of_it = torch.cuda.get_device_properties(0).total_memory
        if gigabytes * 1e9 > all_of_it:
            raise SystemExit(f"--gigabytes {gigabytes:g} is more than the card's {all_of_it / 1e9:.1f}.")
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / all_of_it)
        arguments += ["--reserve-vram", str((all_of_it - gigabytes * 1e9) / 2**30)]
    tree = get_host(NEWEST)
    sys.argv, sys.path[:0] = ["main.py", *arguments], [str(tree)]
    os.chdir(tree)
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    async def load() -> None:
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        for pack in (base / "custom_nodes").iterdir():
            await nodes.load_custom_node(str(pack))

    asyncio.run(load())
    return sys.modules[nodes.NODE_CLASS_MAPPINGS["LoopySampler"].__module__]


def random_weights(config: LoopyConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Loopy(config).state_dict().items()}
    return {name: 0.02 * torch.randn(shape, dtype=torch.float16) for name, shape in shapes.items()}


def measure(sampler: ModuleType, config: LoopyConfig, precision: str, steps: int) -> dict[str, Any]:
    """Seconds of the last clip, and the most memory that any of them took."""
    host, clip, audio = sys.modules[sampler.Turns.__module__], config.clip, config.audio
    hosted = host.hosted_loopy(config, random_weights(config), precision, Path("random weights"), None)
    shape = (config.unet.latent_channels, config.latent_size, config.latent_size)
    frames = CLIPS * clip.frames
    request = sampler.Request(
        portrait=torch.randn(1, *shape, device=hosted.device),
        speech=sampler.Speech(torch.randn(frames, audio.layers, audio.width), clip.fps),
        segments=sampler.TemporalSegments(clip),
        seed=0,
        steps=steps,
        guidance=BRANCHES["audio, reference, base"],
        past=torch.randn(clip.motion_span, *shape, device=hosted.device),
        dtype=hosted.compute_dtype,
    )
    ended = []
    turns = sampler.Turns(hosted, sampler.budget(config, request))
    for step in sampler.generate(hosted.model, request, turns):
        if step.finished is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ended.append(time.perf_counter())
    return {"seconds_a_clip": ended[-1] - ended[-2], "peak_memory_gb": peak_memory(hosted.device) / 1e9}


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if args.gigabytes is not None and args.gigabytes <= 0:
        raise SystemExit(f"--gigabytes is {args.gigabytes:g}; it must be above 0.")
    report = args.report.resolve()
    report.mkdir(parents=True, exist_ok=True)
    result = machine("cuda" if torch.cuda.is_available() else "cpu") | {"precision": args.precision}
    result["card_gb"] = "whole" if args.gigabytes is None else args.gigabytes
    with tempfile.TemporaryDirectory() as folder:
        sampler = enter_host(args.gigabytes, make_base(Path(folder)))
        result |= measure(sampler, sized(args.width, args.size), args.precision, args.steps)
    (report / "benchmark.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    table = "\n".join(rows_of(list(result), [list(result.values())]))
    (report / "benchmark.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
