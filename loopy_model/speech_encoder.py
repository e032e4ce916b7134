"""The bundled speech encoder: a small wav2vec 2.0 whose hidden states feed the audio layers.

The paper takes all layers of a pretrained wav2vec (section 3.3); this one has the same
architecture at a four-hundredth of its size, so that it trains on a laptop and ships with the pack.
"""

import torch
from torch import nn

from .config import check_sizes

TINY_SPEECH = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (48, 48, 64, 64, 64, 64, 64),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
# Training dropout and masking are for self-supervised learning on much more speech.
_NO_DROPOUT = {
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}


def refuse_other_fields(config: dict) -> None:
    """Raises ValueError for what is not a size: other fields of `Wav2Vec2Config` can make transformers ask a
    model hub for code, and `config` comes out of a file."""
    for name in config.keys() - TINY_SPEECH.keys():
        raise ValueError(f"a speech encoder with {name} = {config[name]!r} is not built.")
    check_sizes("a speech encoder", config)


class SpeechEncoder(nn.Module):
    """waveform (B, samples) at 16 kHz -> hidden states (B, layers + 1, tokens, width).

    `config` holds the fields of `TINY_SPEECH`; every 320 samples make one token (50 Hz), token k
    centred on sample 200 + 320 k. The waveform is not normalised: loudness keeps its meaning.
    Weights are those of transformers' `Wav2Vec2Model` below the prefix `model.`.
    """

    def __init__(self, config: dict | None = None) -> None:
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        super().__init__()
        self.config = dict(config or TINY_SPEECH)
        refuse_other_fields(self.config)
        self.model = Wav2Vec2Model(Wav2Vec2Config(**{**_NO_DROPOUT, **self.config}))
        _fold_weight_norm(self.model.encoder.pos_conv_embed.conv)

    @property
    def layers(self) -> int:
        """Number of hidden states per token, counting the input of the first layer."""
        return self.model.config.num_hidden_layers + 1

    @property
    def width(self) -> int:
        """Channels of each hidden state."""
        return self.model.config.hidden_size

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        states = self.model(waveform, output_hidden_states=True).hidden_states
        return torch.stack(states, dim=1)  # (B, L, tokens, D)


def _fold_weight_norm(conv: nn.Conv1d) -> None:
    """Keep one plain weight: the names of weight norm's two parts vary between versions."""
    from torch.nn.utils import parametrize, remove_weight_norm

    if parametrize.is_parametrized(conv, "weight"):
        parametrize.remove_parametrizations(conv, "weight")
    elif hasattr(conv, "weight_g"):
        remove_weight_norm(conv)
