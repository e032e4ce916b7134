"""A level in Loopy Audio-to-Latents is the level that `evaluate puppet` measures."""

from pathlib import Path

import pytest
import torch
from inside import run_inside

from loopy_model.pipeline import BUNDLED, Pipeline
from scripts.environment import NEWEST, OLDEST

LEVELS = """
execute = {name: node.execute for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("Loopy")}
model, encoder, _ = execute["LoopyLoadModel"]("loopy-puppet.safetensors", "fp32").args
audio = {"waveform": 0.1 * torch.randn(1, 1, 16_000), "sample_rate": 16_000}
with torch.inference_mode():
    speech = execute["LoopyAudioEncode"](model, encoder, audio).args[0]
    made = {
        source: [execute["LoopyAudioToLatents"](model, speech, source, level).args[0].tolist() for level in (0, 0.3, 1)]
        for source in ("head movement", "expression")
    }
print(json.dumps(made))
"""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_node_gives_a_level_as_the_pipeline_does(version: str, tmp_path: Path) -> None:
    made, pipeline = run_inside(version, LEVELS, tmp_path), Pipeline(BUNDLED)
    for source, latents in made.items():
        assert latents[0] != latents[1] != latents[2]
        for level, found in zip((0.0, 0.3, 1.0), latents):
            with torch.inference_mode():
                wanted = pipeline._motion_latents(source, level, 25)
            torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=1e-5)
