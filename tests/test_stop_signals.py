"""Ctrl-C and SIGTERM to a process that is within one long call: a line at once, and an end soon."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = """
import hashlib, os, sys, time
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from pipeline import stop_signals
from pipeline.errors import GOES_ON, run_cli
from pipeline.folder_claim import claimed_folder

stop_signals.UNWIND_S = 0.5

def main():
    with claimed_folder(Path(sys.argv[2])):
        worker = get_context("fork").Process(target=time.sleep, args=(600,))
        worker.start()
        worker.terminate()  # as pools do it: no end of ours
        worker.join()
        Timer(0.2, print, ["busy"], {"flush": True}).start()
        if sys.argv[1] == "long call":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # which the interpreter does not come out of
        time.sleep(600)

run_cli(main, GOES_ON)
"""


@pytest.mark.parametrize(
    ("work", "number", "code", "rank"),
    [
        ("long call", signal.SIGTERM, 143, 0),
        ("long call", signal.SIGINT, 130, 0),
        ("short calls", signal.SIGTERM, 143, 0),
        ("short calls", signal.SIGINT, 130, 3),
    ],
)
def test_a_launcher_answers_at_once_and_ends(tmp_path, work, number, code, rank):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RANK": str(rank)}
    command = [sys.executable, "-c", SCRIPT, work, str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(number)
        sent = time.monotonic()
        line = process.stderr.readline() and process.stderr.readline() if rank == 0 else ""
        answered = time.monotonic() - sent
        assert process.wait(20) == code
        assert process.stderr.read() == ""
    if rank == 0:
        assert line.startswith(f"{number.name}: ends now; what is finished is kept") and answered < 2
    assert (tmp_path / "out").exists() == (work == "long call")  # else there was time to give it back
