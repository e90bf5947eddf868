"""How a launcher's process ends once its work is done."""

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
