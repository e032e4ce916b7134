"""A real ComfyUI as a child process: started, waited for, and stopped whatever happens."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from scripts.client import LOCAL
from scripts.environment import ROOT

PACK = "ComfyUI-Loopy"
FOLDERS = ("custom_nodes", "models", "input", "output", "user")
NOT_SHIPPED = (".*", "__pycache__", "runs", "output")  # left out where the pack has to be copied
START_SECONDS, STOP_SECONDS = 300, 15
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
}
HAS_ACCELERATOR = """
import torch
devices = getattr(torch, "accelerator", torch.cuda)  # "accelerator" came with PyTorch 2.6
raise SystemExit(not (devices.is_available() or torch.backends.mps.is_available()))
"""


class HostError(RuntimeError):
    """ComfyUI did not start, or runs without the pack."""


class Host:
    """ComfyUI on a free local port; use it in a `with` statement.

    With `base` the host keeps its nodes, models, input, output and settings in that folder, and
    the unpacked release stays as it came; without it the installation's own folders are used.
    """

    def __init__(
        self,
        python: Path,
        tree: Path,
        log: Path,
        base: Path | None = None,
        port: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.python = python
        self.tree = tree
        self.log = log
        self.base = base or tree
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(python), "-s", str(tree / "main.py")]
        self.command += ["--listen", "127.0.0.1", "--port", str(self.port), *arguments]
        if base:
            self.command += ["--base-directory", str(base)]
            self.command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        self.process: subprocess.Popen | None = None

    @property
    def output(self) -> Path:
        return self.base / "output"

    def __enter__(self) -> Host:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        if "--cpu" not in self.command and not has_accelerator(self.python):
            self.command.append("--cpu")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.tree,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **os.environ},
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None:
                raise HostError(f"{self.python} could not start ComfyUI.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HostError(f"ComfyUI is silent after {START_SECONDS} s.\n{self.log_tail()}")
            time.sleep(0.2)
        if failures := self.failed_imports():
            raise HostError(f"ComfyUI could not import {failures[0]}.\n{self.log_tail()}")

    def answers(self) -> bool:
        try:
            with LOCAL.open(f"{self.url}/system_stats", timeout=5) as response:
                return response.status == 200
        except OSError:  # URLError is one
            return False

    def failed_imports(self) -> list[str]:
        """The copies of the pack that ComfyUI reports as "(IMPORT FAILED): <folder>"."""
        mark = "(IMPORT FAILED): "
        lines = [line for line in self.log_lines() if mark in line]
        folders = [Path(line.split(mark)[1].strip()) for line in lines]
        return [str(folder) for folder in folders if folder.name.lower() == PACK.lower()]

    def log_lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def log_tail(self) -> str:
        return "\n".join([f"The end of {self.log}:", *self.log_lines()[-40:]])

    def wait(self) -> None:
        """Until somebody ends ComfyUI."""
        self.process.wait()

    def stop(self) -> None:
        """End the process by its id, at once when asking does not help."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def free_port(wished: int = 0) -> int:
    """The wished port if nobody uses it, else any free one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wished))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_accelerator(python: Path) -> bool:
    """Whether that Python's PyTorch can use a GPU; ComfyUI needs to be told when there is none."""
    probe = subprocess.run([python, "-c", HAS_ACCELERATOR], stderr=subprocess.DEVNULL)
    return probe.returncode == 0


def make_base(folder: Path) -> Path:
    """A base directory for a host, with this checkout as its only pack."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    place_pack(folder / "custom_nodes" / PACK)
    return folder


def place_pack(target: Path) -> None:
    """Link the checkout there; copy it anew on systems that give no right to make links."""
    if target.is_symlink():
        target.unlink()
    try:
        target.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        leave_out = shutil.ignore_patterns(*NOT_SHIPPED)
        shutil.copytree(ROOT, target, dirs_exist_ok=True, ignore=leave_out)


def find_pack(custom_nodes: Path) -> Path | None:
    """The pack in a host's custom_nodes: this checkout, a link to it, or a released copy."""
    for entry in custom_nodes.iterdir():
        if entry.resolve() == ROOT or entry.name.lower() == PACK.lower():
            return entry
    return None
