"""`python -m loopy_model.puppet --run-dir DIR`: make the puppet's data and small networks.

Afterwards `python -m loopy_model.train` trains the model on DIR/prepared, and `--only pack` puts
everything into the file that ComfyUI loads.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..autoencoder import Autoencoder
from ..speech_encoder import SpeechEncoder
from .clips import SPLITS, write_clips, write_encoded_clips
from .pack import pack, pack_encoders, pack_meter
from .train import train_autoencoder, train_meter, train_speech_encoder


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loopy_model.puppet", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="everything is written here")
    parser.add_argument("--only", choices=(*STEPS, "pack"), help="run one step; default: all up to meter")
    parser.add_argument("--clips", type=int, default=1000, help="training clips of 8 s (1000)")
    parser.add_argument("--test-clips", type=int, default=16, help="held-out clips of 8 s (16)")
    parser.add_argument("--loopy", type=Path, help="pack: the model that loopy_model.train exported")
    parser.add_argument(
        "--result", type=Path, default=Path("loopy-puppet.safetensors"), help="pack: the file to write"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    return parser


class Laboratory:
    """The steps, each skipped when its result is already in the run directory."""

    def __init__(self, run_dir: Path, clips: int, test_clips: int) -> None:
        self.run_dir = run_dir
        self.folders = {name: run_dir / "prepared" / name for name in SPLITS}
        self.counts = {"train": clips, "test": test_clips}

    def data(self) -> None:
        for name, folder in self.folders.items():
            if not (folder / "waveform.npy").exists():
                write_clips(folder, SPLITS[name], self.counts[name])

    def autoencoder(self) -> None:
        if not (self.run_dir / "autoencoder.safetensors").exists():
            _say("autoencoder", train_autoencoder(**self.folders, run_dir=self.run_dir))

    def speech(self) -> None:
        if not (self.run_dir / "speech_encoder.safetensors").exists():
            _say("speech encoder", train_speech_encoder(**self.folders, run_dir=self.run_dir))

    def prepare(self) -> None:
        autoencoder, speech = (
            self._trained(Autoencoder(), "autoencoder"),
            self._trained(SpeechEncoder(), "speech_encoder"),
        )
        encoders = self.run_dir / "encoders.safetensors"
        if not encoders.exists():
            pack_encoders(autoencoder, speech, encoders)
        for name in SPLITS:
            write_encoded_clips(self.run_dir / "prepared", name, autoencoder, speech, encoders)

    def meter(self) -> None:
        if not (self.run_dir / "meter.safetensors").exists():
            autoencoder = self._trained(Autoencoder(), "autoencoder")
            _say("meter", train_meter(autoencoder, **self.folders, run_dir=self.run_dir))

    def _trained(self, network: torch.nn.Module, name: str) -> torch.nn.Module:
        network.load_state_dict(load_file(self.run_dir / f"{name}.safetensors"))
        return network.eval().to(memory_format=torch.channels_last)  # a quarter faster on a CPU


STEPS = ("data", "autoencoder", "speech", "prepare", "meter")


def _say(name: str, metrics: dict[str, float]) -> None:
    print(f"{name}: {json.dumps({k: round(v, 3) for k, v in metrics.items()})}")


def main() -> None:
    options = build_parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.only == "pack":
        if not options.loopy:
            raise SystemExit(
                "pack needs --loopy, the loopy.safetensors in the run directory of loopy_model.train"
            )
        print(pack(options.run_dir, options.loopy, options.result))
        pack_meter(options.run_dir, options.result.with_name("face_meter.safetensors"))
        return
    laboratory = Laboratory(options.run_dir, options.clips, options.test_clips)
    for step in [options.only] if options.only else STEPS:
        getattr(laboratory, step)()


if __name__ == "__main__":
    main()
