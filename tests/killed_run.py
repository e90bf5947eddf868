"""Runs a launcher and kills its own process just before the n-th call of one function.

`python killed_run.py LAUNCHER MODULE:FUNCTION N ARGUMENTS...`; the function may be a method, `MODULE:CLASS.METHOD`.
"""

import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def act_before(name: str, number: int, act: Callable[[], None] = kill_self) -> None:
    """Has this process call `act` just before that function's `number`-th call."""
    module_name, path = name.split(":")
    *owners, attribute = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, attribute), 0

    def counted(*arguments: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return original(*arguments, **keywords)

    setattr(owner, attribute, counted)


def main() -> None:
    launcher, function, number, *arguments = sys.argv[1:]
    act_before(function, int(number))
    sys.argv = [launcher, *arguments]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main()
