"""One training in several processes of this computer, without a launcher."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import torch
from torch import distributed


def in_processes(count: int, run: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`run(*arguments)` in `count` processes of one thread each that train together -> what each returned.
    What one of them raises is raised here."""
    if count == 1:
        return [run(*arguments)]
    port = _free_port()
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        began = [pool.submit(_as_one_of, rank, count, port, run, *arguments) for rank in range(count)]
        for done in as_completed(began):
            done.result()  # the cause, before what the others say of a process that has left them
    return [done.result() for done in began]


def _as_one_of(rank: int, count: int, port: int, run: Callable[..., Any], *arguments: Any) -> Any:
    """With the variables that torchrun sets."""
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    of_all = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    own = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in (of_all | own).items()})
    torch.set_num_threads(1)
    try:
        return run(*arguments)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()  # whoever waits for this process hears of it


def _end_with(parent: BaseProcess) -> None:
    """A process whose parent was killed would train on, beside the run that resumes."""
    wait([parent.sentinel])
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
