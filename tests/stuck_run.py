"""Runs a launcher, one rank of which goes into an endless loop at the n-th call of one function.

`python stuck_run.py LAUNCHER MODULE:FUNCTION N RANK ARGUMENTS...`; the function may be a method, `MODULE:CLASS.METHOD`.
"""

import os
import runpy
import sys

from tests.killed_run import act_before


def spin_forever() -> None:
    while True:
        pass


def main() -> None:
    launcher, function, number, rank, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        act_before(function, int(number), spin_forever)
    sys.argv = [launcher, *arguments]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main()
