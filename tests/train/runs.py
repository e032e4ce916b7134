"""Training runs as real processes that can be killed, and small random clips for them to read."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from loopy_model.config import TINY, LoopyConfig
from loopy_model.prepare.encoded import EncodedClip, path_of, write_encoded
from loopy_model.train.record import read_rows
from loopy_model.train.stages import Recipe, Stage

RECIPE = Recipe(
    "small",
    TINY,
    (
        Stage("one", 3, 4, 1e-3, True, warmup=2),
        Stage("two", 5, 4, 1e-3, False, warmup=2, constant=0.5),
    ),
    ema_decay=0.9,
)
SAVE_EVERY = 2

CLIPS = (
    EncodedClip("long", 40, "train", True),
    EncodedClip("middle", 17, "train", True),
    EncodedClip("one-start", 4, "train", True),
    EncodedClip("too-short", 3, "train", True),
    EncodedClip("silent", 25, "train", False),
    EncodedClip("held-out", 20, "test", True),
    EncodedClip("held-out-silent", 9, "test", False),
)
ENCODERS = {
    "vae": {"path": "nowhere", "sha256": "0"},
    "speech": {"path": "nowhere", "sha256": "1"},
    "size": 32,
}
OTHER_VAE = ENCODERS | {"vae": {"path": "nowhere", "sha256": "2"}}
SPEECH_LAYERS = TINY.audio.layers + 2  # the model reads the last ones


# --- clips --------------------------------------------------------------------------------------


def write_clips(data: Path, clips: tuple[EncodedClip, ...] = CLIPS, config: LoopyConfig = TINY) -> Path:
    for clip in clips:
        write_clip(data, clip, config)
    return data


def write_clip(
    data: Path,
    clip: EncodedClip,
    config: LoopyConfig = TINY,
    encoders: dict[str, Any] = ENCODERS,
    **other: Tensor,
) -> Path:
    """Random numbers that depend on the clip's name alone, but for the tensors given."""
    tensors = tensors_of(clip, config) | other
    write_encoded(data, clip, tensors["latents"], tensors["landmarks"], tensors.get("speech"), encoders)
    return path_of(data, clip.name)


def tensors_of(clip: EncodedClip, config: LoopyConfig = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(int.from_bytes(clip.name.encode(), "big") % 2**63)
    side, audio = config.image_size // 8, config.audio
    shapes = {"latents": (config.unet.latent_channels, side, side), "landmarks": (68, 2)}
    if clip.voiced:
        shapes["speech"] = (audio.layers + 2, audio.width)
    tensors = {name: torch.randn(clip.frames, *shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"landmarks": tensors["landmarks"].sigmoid()}


# --- processes ----------------------------------------------------------------------------------

# Starting torch takes seconds, so one server starts it once and every process is a fork of that.
# Nothing has run in the server, so a fork is as good as a fresh process.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(
    ["loopy_model.train.__main__", "torch.utils.tensorboard", "torch.distributed.fsdp", "torch._dynamo"]
)


class Command:
    """`python -m loopy_model.train ...` in one process, or in several as torchrun starts them."""

    def __init__(self, *arguments: object, output: Path, processes: int = 1) -> None:
        self.output, self.parts, port = output, [], free_port()
        for rank in range(processes):
            several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            environment = {name: str(value) for name, value in several.items()} if processes > 1 else {}
            given = [str(argument) for argument in arguments]
            self.parts.append(SERVER.Process(target=_train, args=(given, environment, f"{output}.{rank}")))
        for part in self.parts:
            part.start()

    def is_alive(self) -> bool:
        return any(part.is_alive() for part in self.parts)

    def kill(self) -> None:
        """SIGKILL: the processes cannot do anything about it."""
        for part in self.parts:
            part.kill()
        for part in self.parts:
            part.join()

    def wait(self) -> int:
        """-> exit code of the first process."""
        for part in self.parts:
            part.join(200)
        if self.is_alive():
            self.kill()
            raise TimeoutError(self.text)
        return self.parts[0].exitcode

    @property
    def text(self) -> str:
        """What the first process has printed, without its progress bars."""
        lines = Path(f"{self.output}.0").read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("stage "))


def _train(arguments: list[str], environment: dict[str, str], output: str) -> None:
    from loopy_model.train import loop
    from loopy_model.train.__main__ import main

    # Validation and drawn curves would be most of the time of so small a run.
    loop.VALIDATION_SAMPLES, loop.write_report = 2, lambda run_dir: None
    # As in a process of its own: the workers that read data are its children, and end with it.
    set_start_method("fork", force=True)
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | environment)
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.argv = ["loopy_model.train", *arguments]
    main()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


# --- runs ---------------------------------------------------------------------------------------


def write_recipe(path: Path, recipe: Recipe = RECIPE) -> Path:
    path.write_text(json.dumps(recipe.to_dict()))
    return path


class Runs:
    """Runs of one recipe on the same clips, each in its own folder."""

    def __init__(self, folder: Path, data: Path, recipe: Recipe = RECIPE) -> None:
        self.folder, self.data, self.recipe = folder, data, write_recipe(folder / "recipe.json", recipe)

    def start(self, name: str, *more: object, processes: int = 1) -> Command:
        paths = ["--data", self.data, "--run-dir", self.folder / name, "--recipe", self.recipe]
        how = ["--device", "cpu", "--save-every", SAVE_EVERY]
        return Command(*paths, *how, *more, output=self.folder / f"{name}.output", processes=processes)

    def finish(self, name: str, *more: object, processes: int = 1) -> Path:
        """Runs to the end; the same name again resumes."""
        command = self.start(name, *more, processes=processes)
        assert command.wait() == 0, command.text
        return self.folder / name

    def refused(self, name: str, *more: object, processes: int = 1) -> str:
        """The one sentence of a command that ends with an error."""
        command = self.start(name, *more, processes=processes)
        code, text = command.wait(), command.text
        assert code == 1 and "Traceback" not in text, text
        return text.strip().splitlines()[-1]

    def killed(
        self,
        name: str,
        when: Callable[[Path], bool],
        left: Callable[[Path], bool],
        *more: object,
        begun: Path | None = None,
        processes: int = 1,
    ) -> Path:
        """A run that was killed as soon as `when` was true and that left what `left` asks for.

        The right moment lasts milliseconds, so this may take several attempts, each from the start
        or from what `begun` left.
        """
        for attempt in range(40):
            path = self.folder / f"{name}-{attempt}"
            if begun is not None:
                shutil.copytree(begun, path)
            command = self.start(path.name, *more, processes=processes)
            while command.is_alive() and not when(path):
                time.sleep(0.001)
            command.kill()
            if left(path):
                return path
        raise AssertionError(f"{name}: never killed at the right moment")


def has_logged(stage: str, step: int) -> Callable[[Path], bool]:
    row = json.dumps({"stage": stage, "step": step})[:-1]
    return lambda path: (path / "log.jsonl").is_file() and row in (path / "log.jsonl").read_text()


def state_of(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "state.pt"
    return torch.load(path, weights_only=True) if path.is_file() else None


def place_of(run_dir: Path) -> tuple[int, int] | None:
    """Stage and step of the last state."""
    state = state_of(run_dir)
    return state and (state["stage"], state["step"])


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows without the time they took."""
    rows = [row for row in read_rows(run_dir / "log.jsonl")]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def steps_of(run_dir: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in log_of(run_dir) if "loss" in row]


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Nested dictionaries, lists and tensors, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    else:
        assert type(one) is type(other) and one == other, path


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, whatever their order in it."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata()), {key: file.get_tensor(key) for key in sorted(file.keys())}


def assert_same_run(one: Path, other: Path, result: str = "loopy.safetensors") -> None:
    assert_same(state_of(one), state_of(other))
    assert_same(contents(one / result), contents(other / result))
    assert log_of(one) == log_of(other)
