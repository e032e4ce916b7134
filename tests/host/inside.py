"""Code that runs in a host's own Python, where the nodes can be called directly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.environment import get_host
from scripts.host import make_base

START = """
import asyncio, json, sys
base, pack = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import torch, nodes

async def load():
    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    await nodes.load_custom_node(pack)

asyncio.run(load())
"""


def run_inside(version: str, code: str, folder: Path) -> Any:
    """What the code prints last, as JSON; it finds the pack's nodes in `nodes.NODE_CLASS_MAPPINGS`."""
    base = make_base(folder)
    [pack] = (base / "custom_nodes").iterdir()
    command = [sys.executable, "-c", START + code, str(base), str(pack)]
    done = subprocess.run(command, cwd=get_host(version), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
