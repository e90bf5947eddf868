"""How a folder came about: command, commit, versions, host and time, for its run.json. Standard library only."""

import json
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "deepspeed", "flash-linear-attention", "tokenizers", "safetensors", "numpy")


def describe_start(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """This process, as JSON values.

    Args:
        packages: whose versions count; of one that is not installed it is None.
    """
    return {
        "command": sys.argv,
        "commit": find_commit(ROOT),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def find_commit(root: Path) -> str | None:
    """The commit that is checked out at `root`, with `-dirty` where files differ from it; None where git cannot say."""
    if not (root / ".git").exists():  # installed, perhaps within some other repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def list_starts(run_file: Path) -> list[dict[str, Any]]:
    """The starts that a run.json tells of (it may not be there yet), and this one."""
    before = json.loads(run_file.read_bytes()).get("starts", []) if run_file.is_file() else []
    return [*before, describe_start()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
