"""Runs the whole test suite, on real ComfyUI hosts too; options go to pytest.

python3 scripts/test.py [tests/host ...] [-k name] [-x]
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.environment import ROOT, SDISTS, SetupError, install_chromium, prepare


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        python = prepare(hosts=list(SDISTS), extras=["train", "prepare", "test"])
        install_chromium()
    except SetupError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    return run([str(python), "-m", "pytest", *sys.argv[1:]])


def run(command: list[str]) -> int:
    """Run the tests; when we are stopped, they stop their hosts before we go."""
    process = subprocess.Popen(command, cwd=ROOT)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches pytest by itself
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
