"""What importing the pack costs a host that has many packs."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from scripts.environment import NEWEST, OLDEST, ROOT, get_host
from scripts.host import make_base

SECONDS = 0.3
NOT_IN_THE_HOST = ("diffusers", "librosa", "accelerate", "espeakng_loader", "playwright")
MEASURE = """
import asyncio, json, sys, time
base, pack, *blocked = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import nodes

seen = []

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "urllib.", "os.system", "os.exec")):
        seen.append(event)

async def measure():
    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    sys.modules.update(dict.fromkeys(blocked))  # importing one of these fails from here on
    sys.addaudithook(watch)
    before, start = set(sys.modules), time.process_time()
    loaded = await nodes.load_custom_node(pack)
    seconds = time.process_time() - start
    return {"loaded": loaded, "seconds": seconds, "events": list(seen),
            "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - before})}

print(json.dumps(asyncio.run(measure())))
"""


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pack, imported by a host that has its own modules loaded already."""
    base = make_base(tmp_path_factory.mktemp("import"))
    [pack] = (base / "custom_nodes").iterdir()
    command = [sys.executable, "-c", MEASURE, str(base), str(pack), *NOT_IN_THE_HOST]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    tree = get_host(request.param)
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_needs_nothing_that_the_host_lacks(imported: dict[str, Any]) -> None:
    assert imported["loaded"]


def test_import_is_quick(imported: dict[str, Any]) -> None:
    assert imported["seconds"] <= SECONDS, imported["modules"]


def test_import_opens_no_connection_and_starts_no_process(imported: dict[str, Any]) -> None:
    assert imported["events"] == []


def test_pack_does_not_shadow_the_host(imported: dict[str, Any]) -> None:
    """Our folders are known to the host by their full path only, never as `nodes`."""
    names = {path.stem for path in ROOT.iterdir() if path.suffix in ("", ".py")} - {"__init__"}
    assert not names & set(imported["modules"])
