"""Runs a launcher and sends its own process a signal just before the n-th call of one function, on one rank.

`python signalled_run.py LAUNCHER MODULE:FUNCTION N SIGNAL RANK ARGUMENTS...`; the call waits until the signal is
noticed. Ranks look for a stop after every micro-batch, however short.
"""

import os
import runpy
import signal
import sys
import time

from pipeline.stop_signals import Interruption
from pipeline.training.stop_flag import StopFlag
from tests.killed_run import act_before


def main() -> None:
    launcher, function, number, name, rank, *arguments = sys.argv[1:]
    reactions = []
    for kind, method in ((StopFlag, "_request"), (Interruption, "_react")):
        note(kind, method, reactions)

    def send() -> None:
        os.kill(os.getpid(), signal.Signals[name])
        while not reactions:
            time.sleep(0.001)

    if os.environ.get("RANK", "0") == rank:
        act_before(function, int(number), send)
    if "training" in function:
        import pipeline.training.step_progress

        pipeline.training.step_progress.AGREE_S = 0.0
    sys.argv = [launcher, *arguments]
    runpy.run_path(launcher, run_name="__main__")


def note(kind: type, method: str, reactions: list[object]) -> None:
    original = getattr(kind, method)

    def noting(self: object, number: signal.Signals) -> None:
        original(self, number)
        reactions.append(number)

    setattr(kind, method, noting)


if __name__ == "__main__":
    main()
