"""Real ComfyUI hosts: the oldest and the newest supported."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.client import Client
from scripts.environment import NEWEST, OLDEST, ROOT, get_host
from scripts.host import Host, make_base

signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the hosts also when we are ended


@pytest.fixture(scope="session", params=[OLDEST, NEWEST])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One ComfyUI at a time, in a directory of its own, for all tests on that version."""
    base = make_base(tmp_path_factory.mktemp("comfyui"))
    (base / "models" / "loopy").mkdir()
    with Host(Path(sys.executable), get_host(request.param), base / "comfyui.log", base) as host:
        yield host


@pytest.fixture(scope="session")
def client(host: Host) -> Client:
    return Client(host.url)


@pytest.fixture
def input_folder(host: Host) -> Path:
    return host.base / "input"


@pytest.fixture
def output_folder(host: Host) -> Path:
    return host.base / "output"


@pytest.fixture
def model_folder(host: Host) -> Path:
    return host.base / "models" / "loopy"


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    return next((ROOT / "assets").rglob("loopy-puppet.safetensors"))
