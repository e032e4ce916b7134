"""Every step from nothing to the bundled model, in one run directory."""

import json
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..config import PUPPET
from ..prepare.records import write_whole
from ..train.export import train
from ..train.processes import in_processes
from ..train.stages import RECIPES
from .clips import SPLITS, encode_share, trained_encoders, write_clips
from .fit import load_network
from .pack import pack, pack_encoders, pack_meter
from .train import CLEANING, train_autoencoder, train_decoder, train_meter, train_speech_encoder

LABORATORY = ("data", "autoencoder", "speech", "prepare", "decoder", "meter")
"""What models are trained and measured with; the order counts."""
STEPS = (*LABORATORY, "model", "pack")


class Laboratory:
    """The steps, each skipped when its result is already in the run directory; only packing, which
    takes seconds, is done again. Raises ValueError with one sentence where the size or a count is not
    possible, or `run_dir` was begun with others."""

    def __init__(
        self,
        run_dir: Path,
        size: int = PUPPET.image_size,
        clips: int = 700,
        test_clips: int = 16,
        workers: int = 1,
    ) -> None:
        check_counts({"clips": clips, "test_clips": test_clips, "workers": workers})
        _check_size(size)
        self.run_dir, self.workers, self.size = run_dir, workers, size
        self.folders = {name: run_dir / "prepared" / name for name in SPLITS}
        self.counts = {"train": clips, "test": test_clips}
        self.pictures = {**self.folders, "run_dir": run_dir, "size": size}
        self._refuse_another_beginning({"size": size, "clips": clips, "test_clips": test_clips})

    def _refuse_another_beginning(self, asked: dict[str, int]) -> None:
        path = self.run_dir / "laboratory.json"
        begun = json.loads(path.read_text()) if path.is_file() else asked
        for name, value in asked.items():
            if begun[name] != value:
                raise ValueError(
                    f"{self.run_dir} was begun with --{name.replace('_', '-')} {begun[name]}, not {value}; "
                    "use that again, or another --run-dir."
                )
        write_whole(path, lambda partial: partial.write_text(json.dumps(begun)))

    def make(self, steps: Iterable[str]) -> None:
        for step in steps:
            getattr(self, step)()

    def data(self) -> None:
        for name, folder in self.folders.items():
            if not (folder / "waveform.npy").exists():
                write_clips(folder, SPLITS[name], self.counts[name])

    def autoencoder(self) -> None:
        if not (self.run_dir / "autoencoder.safetensors").exists():
            _say("autoencoder", train_autoencoder(**self.pictures))

    def speech(self) -> None:
        if not (self.run_dir / "speech_encoder.safetensors").exists():
            _say("speech encoder", train_speech_encoder(**self.folders, run_dir=self.run_dir))

    def prepare(self) -> None:
        encoders = self.run_dir / "encoders.safetensors"
        if not encoders.exists():
            pack_encoders(*trained_encoders(self.run_dir), encoders, self.size)
        shares = [(self.run_dir, self.size, (k, self.workers)) for k in range(self.workers)]
        if self.workers == 1:
            return encode_share(*shares[0])
        with get_context("spawn").Pool(self.workers, torch.set_num_threads, (1,)) as pool:
            pool.starmap(encode_share, shares, chunksize=1)

    def decoder(self) -> None:
        if not (self.run_dir / f"{CLEANING}.safetensors").exists():
            autoencoder = load_network(Autoencoder(), self.run_dir / "autoencoder.safetensors")
            _say("decoder", train_decoder(autoencoder, **self.pictures))

    def meter(self) -> None:
        if not (self.run_dir / "meter.safetensors").exists():
            autoencoder = load_network(Autoencoder(), self.run_dir / f"{CLEANING}.safetensors")
            _say("meter", train_meter(autoencoder, **self.pictures))

    def model(self) -> Path:
        recipe = RECIPES["puppet"]
        recipe = replace(recipe, config=replace(recipe.config, image_size=self.size))
        batches = [stage.batch for stage in recipe.stages]
        processes = max(n for n in range(1, self.workers + 1) if all(batch % n == 0 for batch in batches))
        return in_processes(processes, train, recipe, self.run_dir / "prepared", self.run_dir / "loopy")[0]

    def pack(self) -> None:
        print(pack(self.run_dir, self.model(), self.run_dir / "loopy-puppet.safetensors"))
        pack_meter(self.run_dir, self.run_dir / "face_meter.safetensors")


def check_counts(counts: dict[str, int]) -> None:
    """By the names of their options. Raises ValueError with one sentence."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {count}; give 1 or more.")


def _check_size(size: int) -> None:
    patch = AutoencoderConfig().patch
    if size < patch or size % patch:
        raise ValueError(f"--size is {size}; give a multiple of {patch}, such as {PUPPET.image_size}.")


def _say(name: str, metrics: dict[str, float]) -> None:
    print(f"{name}: {json.dumps({k: round(v, 3) for k, v in metrics.items()})}")
