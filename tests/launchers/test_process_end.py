"""How a launcher's process ends once its work is done."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os, sys
from pipeline.errors import note_left_distributed, run_cli

class Library:
    def __del__(self):
        os.abort()

library = Library()
atexit.register(print, "closed")

def main():
    {note}
    print("done")
    {leave}

run_cli(main)
"""


@pytest.mark.parametrize(("leave", "code"), [("return", 0), ("sys.exit(85)", 85)])
def test_a_rank_that_has_left_ends_with_its_own_code_whatever_teardown_would_do(leave, code):
    command = [sys.executable, "-c", SCRIPT.format(note="note_left_distributed()", leave=leave)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, "done\nclosed\n"), ended.stderr


def test_other_processes_end_as_python_does():
    command = [sys.executable, "-c", SCRIPT.format(note="", leave="sys.exit(3)").replace("os.abort()", "pass")]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 3


ENDS = {
    "UserError": ('raise UserError("no")', 2),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 143),
    "a long call": ("os.kill(os.getpid(), signal.SIGTERM); hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)", 143),
}
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
PRINTS = """
import hashlib, os, signal, time
from pipeline import stop_signals
from pipeline.errors import UserError, run_cli
stop_signals.UNWIND_S = stop_signals.FLUSH_S = 0.5
def main():
    print({text})
    {end}
run_cli(main)
"""


@pytest.mark.parametrize(("end", "code"), ENDS.values(), ids=ENDS)
def test_what_was_printed_into_a_pipe_arrives_however_a_launcher_ends(end, code):
    command = [sys.executable, "-c", PRINTS.format(text="'printed'", end=end)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=BUFFERED)
    assert (ended.returncode, ended.stdout) == (code, "printed\n"), ended.stderr
    reading, writing = os.pipe()
    os.close(reading)  # whoever would read it is gone
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, env=BUFFERED)
    os.close(writing)
    assert ended.returncode == code and "Traceback" not in ended.stderr, ended.stderr


def test_a_pipe_that_nobody_reads_keeps_no_launcher_alive():
    command = [
        sys.executable,
        "-c",
        PRINTS.format(text="'x' * 60_000, flush=True", end=f"print('y' * 7000); {ENDS['SIGTERM'][0]}"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=BUFFERED) as process:
        assert process.wait(30) == 143
