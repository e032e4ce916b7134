"""Stock audio encoders hear through the node what they heard when the training clips were prepared."""

from pathlib import Path

import pytest
from inside import run_inside

from scripts.environment import NEWEST, OLDEST

HEAR = """
from types import SimpleNamespace
from comfy.audio_encoders.audio_encoders import load_audio_encoder_from_sd
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

torch.manual_seed(0)
AudioEncode = nodes.NODE_CLASS_MAPPINGS["LoopyAudioEncode"]
root = AudioEncode.__module__.removesuffix(".nodes.audio")
LOOPY, align = sys.modules[root + ".loopy_model.config"].LOOPY, sys.modules[root + ".loopy_model.audio"].align_to_frames
voice = 1e-3 * torch.randn(16_000) + 1e-3
model = Wav2Vec2Model(Wav2Vec2Config()).eval()
values = Wav2Vec2FeatureExtractor()(voice, sampling_rate=16_000, return_tensors="pt").input_values
with torch.inference_mode():
    theirs = align(torch.cat(model(values, output_hidden_states=True).hidden_states), 25, 25)
    encoder = load_audio_encoder_from_sd(model.state_dict())
    audio = {"waveform": voice[None, None], "sample_rate": 16_000}
    ours = AudioEncode.execute(SimpleNamespace(config=LOOPY, file="x"), encoder, audio).args[0].features
print(json.dumps([((ours - theirs).abs().mean() / theirs.abs().mean()).item(), list(ours.shape)]))
"""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_quiet_voice_is_heard_as_transformers_hears_it(version: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    apart, shape = run_inside(version, HEAR, tmp_path)
    assert shape == [25, 13, 768] and apart < 1e-3
