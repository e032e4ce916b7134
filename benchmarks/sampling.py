"""How fast a clip is sampled: against the operations it needs, the machine's limit, and diffusers.

    python -m benchmarks.sampling --report runs/benchmark
    python -m benchmarks.sampling --report runs/benchmark --device cuda --precision bf16 --width full
    python -m benchmarks.sampling --report runs/count --width full --only count       # on any machine

Random weights and values; neither changes the time. Writes benchmark.json, benchmark.md and growth.png.
Operations are counted on shapes alone; everything that is compared is measured in turns.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from loopy_model.conditions import Speech
from loopy_model.config import ClipGeometry, LoopyConfig
from loopy_model.guidance import Guidance
from loopy_model.layers import ResnetBlock, SpatialTransformer
from loopy_model.motion import TemporalSegments
from loopy_model.sampling import Request, generate
from loopy_model.temporal import AudioAttention, InterClipLayer, IntraClipLayer
from loopy_model.train.plan import peak_memory

from .measure import PRECISIONS, Work, in_turns, machine, matrix_rate, operations, seconds
from .subjects import BRANCHES, Sampling, decoder, sized, yardsticks

STEPS = 25
SPATIAL = "spatial attention"
PARTS = {
    "residual blocks": ResnetBlock,
    SPATIAL: SpatialTransformer,
    "inter-clip layers": InterClipLayer,
    "intra-clip layers": IntraClipLayer,
    "audio attention": AudioAttention,
}
ONLY_BASE = Guidance(0, 0)  # neither voice nor portrait
SHORT = ClipGeometry(segments=1)  # 4 motion frames, as the earlier methods have


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, required=True, help="folder for what was measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--width", choices=("reduced", "full"), default="reduced")
    parser.add_argument("--size", type=int, help="latent cells a side; else 32 reduced and 64 full")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="else all, but whole on a card alone")
    return parser


@dataclass(frozen=True)
class Bench:
    """What is measured, and on what."""

    config: LoopyConfig
    width: str
    device: str
    dtype: torch.dtype
    rounds: int

    def subject(self, config: LoopyConfig | None = None) -> Sampling:
        return Sampling(config or self.config, self.device, self.dtype)

    def shapes(self, config: LoopyConfig | None = None) -> Sampling:
        """Without values, to count operations on."""
        return Sampling(config or self.config, "meta", torch.float32)

    def in_turns(self, works: dict[str, Work]) -> dict[str, float]:
        return in_turns(works, self.device, self.rounds)


def steps(bench: Bench) -> dict:
    """Loopy's step by branches, and as many passes of the yardsticks."""
    subject, shapes = bench.subject(), bench.shapes()
    others = yardsticks(bench.config, bench.device, bench.dtype)
    taken = bench.in_turns({name: subject.step(g) for name, g in BRANCHES.items()} | others)
    rate = matrix_rate(bench.device, bench.dtype)
    rows = {}
    for name, guidance in BRANCHES.items():
        flop, branches = operations(shapes.step(guidance)), len(name.split(","))
        rows[name] = {
            "seconds": taken[name],
            "gflop": flop / 1e9,
            "share_of_matrix_rate": flop / taken[name] / rate,
            **{f"times_{other}": taken[name] / branches / taken[other] for other in others},
        }
    return {
        "matrix_gflop_per_second": rate / 1e9,
        "yardstick_seconds": {other: taken[other] for other in others},
        "branches": rows,
    }


def clip(bench: Bench) -> dict:
    """What a clip costs in all: its steps, and what is done once."""
    works = works_of_clip(bench.subject())
    seconds_of = bench.in_turns({name: work for name, (_, work) in works.items()})
    tflop = count(bench)
    return {
        name: {"seconds": times * seconds_of[name], "tflop": tflop[name]}
        for name, (times, _) in works.items()
    }


def whole(bench: Bench) -> dict:
    """One clip from its motion frames to its pictures, alone: the table of docs/performance.md."""
    works = works_of_clip(bench.subject())

    def clip() -> None:
        for times, work in works.values():
            for _ in range(times):
                work()

    clip()
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken, rate = seconds(clip, bench.device), matrix_rate(bench.device, bench.dtype)
    flop = 1e12 * sum(count(bench).values())
    return {
        "seconds_a_clip": taken,
        "tflop_per_second": flop / taken / 1e12,
        "share_of_matrix_rate": flop / taken / rate,
        "peak_memory_gb": peak_memory(bench.device) / 1e9,
    }


def count(bench: Bench) -> dict[str, float]:
    """TFLOP of a clip by its parts, on shapes alone: nothing is run."""
    works = works_of_clip(bench.shapes())
    return {name: times * operations(work) / 1e12 for name, (times, work) in works.items()}


def works_of_clip(subject: Sampling) -> dict[str, tuple[int, Work]]:
    """What a clip far from the start is made of, and how many times each is done."""
    guidance, new = BRANCHES["audio, reference, base"], new_motion_frames(subject.config.clip)
    return {
        f"{STEPS} steps": (STEPS, subject.step(guidance)),
        f"reading {new} new motion frames": (new, lambda: subject.read(1)),
        "keys and values": (1, subject.encode),
        "VAE": (1, decoder(subject.config, subject.device, subject.dtype)),
    }


def new_motion_frames(clip: ClipGeometry) -> int:
    """Of a clip far from the start: those that stood nowhere in any earlier clip."""
    ages = set(clip.motion_ages)
    earlier = {age + back for age in ages for back in range(clip.frames, clip.motion_span, clip.frames)}
    return len(ages - earlier)


def parts(bench: Bench) -> dict:
    """Each part's share of the time of a step; what the portrait's keys add to spatial attention is what a
    branch without them takes less. Measured by hooks around every layer, apart from the other figures: on a
    card the hooks cost time themselves."""
    subject, branches = bench.subject(), "audio, reference, base"
    whole, spent = time_of_layers(bench, subject, BRANCHES[branches])
    without_portrait = time_of_layers(bench, subject, ONLY_BASE)[1][SPATIAL]
    spent["reference attention"] = spent[SPATIAL] - len(branches.split(",")) * without_portrait
    spent[SPATIAL] -= spent["reference attention"]
    spent["everything else"] = whole - sum(spent.values())
    return {name: taken / whole for name, taken in spent.items()}


def time_of_layers(bench: Bench, subject: Sampling, guidance: Guidance) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and of those in each kind of layer; the fastest of the rounds."""
    step, spent, hooks = subject.step(guidance), defaultdict(float), []

    def now(sign: int, name: str, *_) -> None:
        if bench.device == "cuda":
            torch.cuda.synchronize()
        spent[name] += sign * time.perf_counter()

    step()
    for module in subject.model.denoising_unet.modules():
        for name, kind in PARTS.items():
            if type(module) is kind:
                hooks.append(module.register_forward_pre_hook(partial(now, -1, name)))
                hooks.append(module.register_forward_hook(partial(now, 1, name)))
    rounds = []
    for _ in range(bench.rounds):
        spent.clear()
        rounds.append((seconds(step, bench.device), dict(spent)))
    for hook in hooks:
        hook.remove()
    return min(rounds, key=lambda taken: taken[0])


def memory_of_movement(bench: Bench) -> dict:
    """A step with the paper's 20 motion frames and with the 4 of earlier methods."""
    guidance = BRANCHES["audio, reference, base"]
    configs = {"20 motion frames": bench.config, "4 motion frames": replace(bench.config, clip=SHORT)}
    taken = bench.in_turns({name: bench.subject(config).step(guidance) for name, config in configs.items()})
    flop = [operations(bench.shapes(config).step(guidance)) for config in configs.values()]
    more = taken["20 motion frames"] / taken["4 motion frames"] - 1
    return {"seconds": taken, "more_time": more, "more_operations": flop[0] / flop[1] - 1}


def growth(bench: Bench) -> dict[str, dict[int, dict[str, float]]]:
    """A step's cost as one number of the model grows and the others stay as they are."""
    clip, size = bench.config.clip, bench.config.latent_size

    def cut(**lengths: int) -> LoopyConfig:
        return replace(bench.config, clip=replace(clip, **lengths))

    axes = {
        "frames of a clip": {n: cut(frames=n) for n in (4, 8, 12, 16, 24)},
        "latent cells a side": {n * size // 4: sized(bench.width, n * size // 4) for n in (1, 2, 3, 4)},
        "motion frames": {n * clip.stride: cut(segments=n) for n in (1, 2, 3, 5, 7)},
    }
    guidance = BRANCHES["audio, reference, base"]
    grown = {
        axis: {
            n: {
                "seconds": bench.in_turns({"step": bench.subject(config).step(guidance)})["step"],
                "gflop": operations(bench.shapes(config).step(guidance)) / 1e9,
            }
            for n, config in configs.items()
        }
        for axis, configs in axes.items()
    }
    return grown | {"frames of the voice": voice_lengths(bench)}


def voice_lengths(bench: Bench) -> dict[int, dict[str, float]]:
    """Whole videos, with one step a clip and one branch."""
    subject, audio, clip = bench.subject(), bench.config.audio, bench.config.clip
    portrait, taken = subject.randn(1, *subject.latents), {}
    for frames in (12, 24, 48, 96):
        speech = Speech(torch.randn(frames, audio.layers, audio.width), clip.fps)
        request = Request(
            portrait, speech, TemporalSegments(clip), 0, 1, BRANCHES["audio"], dtype=bench.dtype
        )
        work = partial(list, generate(subject.model, request))  # runs when the list is made
        taken[frames] = {"seconds": seconds(work, bench.device)}
    return taken


SECTIONS = {
    "whole": whole,  # first: nothing else must have raised the peak of memory
    "steps": steps,
    "clip": clip,
    "parts": parts,
    "memory": memory_of_movement,
    "growth": growth,
    "count": count,
}
# Unless asked for: `whole` takes minutes on a CPU, and `count` is a part of `clip`.
LEFT_OUT = {"cpu": {"whole", "count"}, "cuda": {"count"}}


def table(result: dict) -> str:
    """The figures as Markdown."""
    lines = []
    if "whole" in result:
        named = {name: result[name] for name in ("device", "clocks", "precision")} | result["whole"]
        lines += rows_of(list(named), [list(named.values())])
    if "steps" in result:
        found = result["steps"]
        rows = [[name, *row.values()] for name, row in found["branches"].items()]
        lines += rows_of(["branches of a step", *next(iter(found["branches"].values()))], rows)
        lines += rows_of(["yardstick", "seconds"], found["yardstick_seconds"].items())
    if "clip" in result:
        rows = [[name, *row.values()] for name, row in result["clip"].items()]
        whole = [sum(column) for column in list(zip(*rows))[1:]]
        lines += rows_of(["one clip", "seconds", "TFLOP"], [*rows, ["all", *whole]])
    if "count" in result:
        found = result["count"]
        lines += rows_of(["one clip", "TFLOP"], [*found.items(), ["all", sum(found.values())]])
    if "parts" in result:
        lines += rows_of(["part of a step", "share"], result["parts"].items())
    if "memory" in result:
        more = {name: result["memory"][f"more_{name}"] for name in ("time", "operations")}
        lines += rows_of(["20 motion frames against 4", "more"], more.items())
    for axis, points in result.get("growth", {}).items():
        rows = [[n, *row.values()] for n, row in points.items()]
        lines += rows_of([axis, *next(iter(points.values()))], rows)
    return "\n".join(lines)


def rows_of(head: list[str], rows: Iterable[Sequence]) -> list[str]:
    texts = [[x if isinstance(x, str) else f"{x:.4g}" for x in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *texts)] + [""]


def plot(growth: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, places = plt.subplots(1, len(growth), figsize=(4 * len(growth), 3.4), layout="constrained")
    for place, (axis, points) in zip(places, growth.items()):
        x = [int(n) for n in points]
        y = [point["seconds"] for point in points.values()]
        place.plot(x, y, "o-")
        place.set(xlabel=axis, ylim=(0, 1.1 * max(y)), xlim=0)
        place.set_ylabel("seconds")
        place.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    size = args.size or {"reduced": 32, "full": 64}[args.width]
    bench = Bench(sized(args.width, size), args.width, args.device, PRECISIONS[args.precision], args.rounds)
    args.report.mkdir(parents=True, exist_ok=True)
    result = machine(args.device) | {"precision": args.precision, "width": args.width, "latent_cells": size}
    for name in args.only or [name for name in SECTIONS if name not in LEFT_OUT[args.device]]:
        result[name] = SECTIONS[name](bench)
        (args.report / "benchmark.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (args.report / "benchmark.md").write_text(table(result), encoding="utf-8")
    if "growth" in result:
        plot(result["growth"], args.report / "growth.png")
    print(table(result))


if __name__ == "__main__":
    main()
