"""One training in several processes of this computer, without a launcher."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import Any

import torch
from torch import distributed

from ..prepare.workers import end_with_parent


def in_processes(count: int, run: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`run(*arguments)` in `count` processes that train together and share this one's threads -> what each
    returned. What the first of them raises is raised here, and ends the others, which would wait for it."""
    if count == 1:
        return [run(*arguments)]
    port, threads, others = _free_port(), max(1, torch.get_num_threads() // count), active_children()
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        began = [
            pool.submit(_as_one_of, rank, count, threads, port, run, *arguments) for rank in range(count)
        ]
        try:
            for done in as_completed(began):
                done.result()
        except BaseException:
            for process in set(active_children()) - set(others):
                process.kill()
            raise
    return [done.result() for done in began]


def _as_one_of(
    rank: int, count: int, threads: int, port: int, run: Callable[..., Any], *arguments: Any
) -> Any:
    """With the variables that torchrun sets."""
    end_with_parent()
    of_all = {
        "WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads,
    }
    own = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in (of_all | own).items()})
    torch.set_num_threads(threads)
    result = run(*arguments)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
