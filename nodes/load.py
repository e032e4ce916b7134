import logging
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..loopy_model.autoencoder import AutoencoderConfig
from ..loopy_model.weights import read_header, split_parts
from .host import (
    DTYPES,
    MODEL_FOLDER,
    HostedSpeechEncoder,
    autoencoder_vae,
    hosted_loopy,
    register_model_folder,
)
from .types import CATEGORY, LoopyModelType

register_model_folder()


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
    def fingerprint_inputs(cls, model_name: str, weight_dtype: str) -> str:
        status = Path(folder_paths.get_full_path_or_raise(MODEL_FOLDER, model_name)).stat()
        return f"{model_name} {weight_dtype} {status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise(MODEL_FOLDER, model_name))
        header = read_header(path)
        logging.info("%s: trained on %s. %s", header.card.name, header.card.trained_on, header.card.limits)
        tensors = split_parts(comfy.utils.load_torch_file(str(path), safe_load=True))
        speech, pictures = header.parts.get("speech_encoder"), header.parts.get("autoencoder")
        preview = pictures and pictures.get("preview")
        model = hosted_loopy(header.config, tensors.get("loopy", {}), weight_dtype, path, preview)
        encoder = speech and HostedSpeechEncoder(speech, tensors["speech_encoder"], path)
        vae = pictures and autoencoder_vae(
            AutoencoderConfig(**pictures["sizes"]), tensors["autoencoder"], path
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
