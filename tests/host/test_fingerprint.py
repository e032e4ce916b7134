"""What tells the host that a model file has changed."""

from pathlib import Path

import pytest
from inside import run_inside

from scripts.environment import NEWEST, OLDEST

ASK = """
told = nodes.NODE_CLASS_MAPPINGS["LoopyLoadModel"].fingerprint_inputs
model, adapter = "loopy-puppet.safetensors", "loopy-puppet-4-steps.safetensors"
choices = ((model, adapter), (model, None), (None, adapter), (None, None), (model, "none"))
print(json.dumps([eval(told(one, "default", other)) for one, other in choices]))
"""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_linked_name_does_not_hide_the_other_file(version: str, tmp_path: Path) -> None:
    both, model, adapter, none, alone = run_inside(version, ASK, tmp_path)
    assert len(both) == 2 and model == alone == both[:1] and adapter == both[1:] and none == []
