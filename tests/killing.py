"""Kills runs at random instants: the whole of one, or a single process of it.

The processes of a run are told by a mark in their environment, which children inherit, also those that a launcher
gives a session of their own and those that outlive their parent.
"""

import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.distributed.processes import environment

MARK_NAME = "AHN_TEST_RUN"


def new_mark() -> tuple[str, dict[str, str]]:
    """A mark, and the environment to start a run with so that its processes have it."""
    value = secrets.token_hex(8)
    return f"{MARK_NAME}={value}", environment(**{MARK_NAME: value})


def marked_processes(mark: str) -> list[int]:
    """The living processes with that mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes()  # empty for one that has ended but was not waited for
            except OSError:  # has just ended, or is another user's
                continue
            if mark.encode() in variables.split(b"\0"):
                found.append(int(entry.name))
    return found


def elapsed(seconds: float) -> Callable[[], bool]:
    """Whether that much time has passed since this call."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() > deadline


def kill_when(
    is_due: Callable[[], bool], commands: Sequence[list[str]], only_one: random.Random | None, grace: float = 0.5
) -> bool:
    """Starts the commands at once and kills all their processes, or one at random, unless all end earlier.

    Args:
        is_due: whether it is time to kill.
        commands: make up the run.
        only_one: chooses the one process; None: all are killed.
        grace: seconds that the rest then has to end by itself before it is killed, too.

    Returns:
        Whether anything was killed.
    """
    mark, environment = new_mark()
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runs = [subprocess.Popen(command, env=environment, **quiet) for command in commands]
    try:
        while not is_due() and any(run.poll() is None for run in runs):
            time.sleep(0.005)
        members = marked_processes(mark)
        if members and only_one is not None:
            _kill(only_one.choice(members))
            is_over = elapsed(grace)
            while marked_processes(mark) and not is_over():
                time.sleep(0.05)
    finally:
        while left := marked_processes(mark):  # again, for what was started meanwhile
            for pid in left:
                _kill(pid)
        for run in runs:
            run.wait()
    return bool(members)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
