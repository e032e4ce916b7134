"""Weights on a card that is too small: every layer must stream, nothing may need a full load.

There is no GPU here, so torch's meta device plays the card: what the host decides per layer is real.
"""

from typing import Any

import pytest
from inside import run_inside

from scripts.environment import NEWEST, OLDEST

LOAD_PARTLY = """
import comfy.model_patcher
LoadModel, Sampler = nodes.NODE_CLASS_MAPPINGS["LoopyLoadModel"], nodes.NODE_CLASS_MAPPINGS["LoopySampler"]
with torch.inference_mode():
    hosted, _, vae = LoadModel.execute("loopy-puppet.safetensors", "default").args
card = torch.device("meta")
for part in (*hosted.patchers.values(), vae.patcher):
    patcher = comfy.model_patcher.ModelPatcher(part.model, load_device=card, offload_device=torch.device("cpu"))
    patcher.partially_load(card, extra_memory=patcher.model_size() * 0.4)

resident, streaming, stuck = 0, 0, []
for name, module in (*hosted.model.named_modules(), *vae.first_stage_model.named_modules()):
    if not list(module.parameters(recurse=False)) or list(module.children()):
        continue
    if {p.device.type for p in module.parameters(recurse=False)} == {"meta"}:
        resident += 1
    elif getattr(module, "comfy_cast_weights", False):
        streaming += 1
    else:
        stuck.append((name, type(module).__module__))

with torch.inference_mode():
    hosted = LoadModel.execute("loopy-puppet.safetensors", "default").args[0]
loaded, load = [], comfy.model_management.load_models_gpu
def note(patchers, **more):
    loaded.append([part for part, patcher in hosted.patchers.items() if patcher in patchers])
    load(patchers, **more)

comfy.model_management.load_models_gpu = note
Budget = sys.modules[Sampler.__module__].budget.__globals__["Budget"]
turns = sys.modules[Sampler.__module__].Turns(hosted, Budget(12, 25, 1, 12, 1, working=2000, reading=1000, latents=0))
for part in ("read", "read", "denoise", "denoise", "read"):
    turns(part)
print(json.dumps({"resident": resident, "streaming": streaming, "stuck": stuck, "loaded": loaded}))
"""


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def partly_loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_inside(request.param, LOAD_PARTLY, tmp_path_factory.mktemp("streaming"))


def test_part_of_the_model_is_resident_and_the_rest_streams(partly_loaded: dict[str, Any]) -> None:
    assert partly_loaded["resident"] > 20
    assert partly_loaded["streaming"] > 20


def test_no_layer_is_stuck_on_the_wrong_device(partly_loaded: dict[str, Any]) -> None:
    """Modules that own free parameters cast them where they are used, so they may stay."""
    casts_itself = ("temporal", "audio_to_latents")
    assert [name for name, module in partly_loaded["stuck"] if not module.endswith(casts_itself)] == []


def test_the_host_loads_each_part_when_its_turn_comes(partly_loaded: dict[str, Any]) -> None:
    """So that on a small card the reference net makes room once it has read."""
    assert partly_loaded["loaded"] == [["read"], ["denoise"], ["read"]]
