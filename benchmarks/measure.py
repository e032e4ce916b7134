"""What the benchmarks measure with: time, operations, memory, and the machine's own limit."""

import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Work = Callable[[], object]


def machine(device: str) -> dict[str, str | int]:
    """What a figure depends on beside the code."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else "",
        "diffusers": version("diffusers"),
        "clocks": clocks() if device == "cuda" else "",
    }


def clocks() -> str:
    """Of the card and of its memory while it works, and the power that it may draw; "" without nvidia-smi."""
    if torch.cuda.is_available():
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        for _ in range(400):  # queued: about a second of work
            a @ a
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.splitlines()[0]


def seconds(work: Work, device: str) -> float:
    """Of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(works: dict[str, Work], device: str, rounds: int) -> dict[str, float]:
    """The least seconds of each, after one call that is not counted. They take turns, so that a machine
    that is slow for a while is slow for all."""
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: min(taken) for name, taken in times.items()}


def operations(work: Work) -> int:
    """FLOP of matrix products, convolutions and attention; a multiplication with its addition is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / in_turns({"product": lambda: a @ b}, device, 5)["product"]
