import logging
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..loopy_model.adapter import apply_adapter, config_with, read_card
from ..loopy_model.autoencoder import AutoencoderConfig
from ..loopy_model.weights import read_header, split_parts
from .host import (
    ADAPTER_FOLDERS,
    DTYPES,
    MODEL_FOLDER,
    HostedSpeechEncoder,
    autoencoder_vae,
    hosted_loopy,
    register_folders,
)
from .types import CATEGORY, LoopyModelType

NO_ADAPTER = "none"

register_folders()


class LoopyLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopyLoadModel",
            display_name="Load Loopy Model",
            category=CATEGORY,
            description="Loads a Loopy checkpoint from models/loopy. One file can carry the model, its audio encoder "
            "and its VAE. loopy-puppet.safetensors comes with the pack: a small model trained on drawn "
            "faces, to see everything work without a download.",
            search_aliases=["talking head", "lip sync", "portrait animation"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(MODEL_FOLDER),
                    tooltip="A .safetensors file in models/loopy, or the bundled loopy-puppet.safetensors.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=["default", *DTYPES],
                    default="default",
                    advanced=True,
                    tooltip="Precision of the weights. default lets ComfyUI choose for your device.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=[NO_ADAPTER, *_adapters()],
                    default=NO_ADAPTER,
                    optional=True,
                    advanced=True,
                    tooltip="What fine-tuning or distilling changed in this model: a file in models/loras that "
                    "`python -m loopy_model.train` made with recipe finetune or distill. With the bundled model, "
                    "loopy-puppet-4-steps samples in 4 steps: set steps to 4, and both ratios to 1.",
                ),
                io.Float.Input(
                    "adapter_strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How much of the adapter: 0 is the model without it, 1 is as it was trained.",
                ),
            ],
            outputs=[
                LoopyModelType.Output(display_name="loopy_model", tooltip="The model, for all Loopy nodes."),
                io.AudioEncoder.Output(
                    display_name="audio_encoder",
                    tooltip="The wav2vec encoder in the file; if it has none, use Load Audio Encoder.",
                ),
                io.Vae.Output(
                    display_name="vae", tooltip="The VAE in the file; if it has none, use Load VAE."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        model_name: str | None,
        weight_dtype: str | None,
        adapter: str | None = NO_ADAPTER,
        adapter_strength: float | None = 1.0,
    ) -> str:
        """Of the files alone: all else the host compares itself. A linked input is None here, and the host
        writes what is returned into every file that is saved, so no path of the user's may be in it."""
        model = model_name and Path(folder_paths.get_full_path_or_raise(MODEL_FOLDER, model_name))
        files = [file for file in (model, adapter and _adapter_path(adapter)) if file]
        return str([(file.stat().st_mtime_ns, file.stat().st_size) for file in files])

    @classmethod
    def execute(
        cls, model_name: str, weight_dtype: str, adapter: str = NO_ADAPTER, adapter_strength: float = 1.0
    ) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise(MODEL_FOLDER, model_name))
        header = read_header(path)
        logging.info("%s: trained on %s. %s", header.card.name, header.card.trained_on, header.card.limits)
        tensors = split_parts(comfy.utils.load_torch_file(str(path), safe_load=True))
        weights, config = tensors.get("loopy", {}), header.config
        if change := _adapter_path(adapter):
            weights = apply_adapter(weights, change, config, adapter_strength)
            config = config_with(change, config, adapter_strength)
            what = (path.name, adapter, adapter_strength, read_card(change).limits)
            logging.info("%s: with %s at strength %g. %s", *what)
        speech, pictures = header.parts.get("speech_encoder"), header.parts.get("autoencoder")
        preview = pictures and pictures.get("preview")
        model = hosted_loopy(config, weights, weight_dtype, path, preview)
        encoder = speech and HostedSpeechEncoder(speech, tensors.get("speech_encoder", {}), path)
        vae = pictures and autoencoder_vae(
            AutoencoderConfig(**pictures["sizes"]), tensors.get("autoencoder", {}), path
        )
        return io.NodeOutput(
            model,
            encoder
            or ExecutionBlocker(
                f"{model_name} carries no audio encoder; connect Load Audio Encoder instead."
            ),
            vae
            or ExecutionBlocker(f"{model_name} carries no VAE; connect Load VAE with an SD1.5 VAE instead."),
        )


def _adapters() -> list[str]:
    return list(
        dict.fromkeys(n for folder in ADAPTER_FOLDERS for n in folder_paths.get_filename_list(folder))
    )


def _adapter_path(name: str) -> Path | None:
    if name == NO_ADAPTER:
        return None
    paths = (folder_paths.get_full_path(folder, name) for folder in ADAPTER_FOLDERS)
    path = next(filter(None, paths), None)
    if path is None:
        raise FileNotFoundError(
            f"{name} is no longer in models/loras; choose another adapter, or {NO_ADAPTER}."
        )
    return Path(path)
