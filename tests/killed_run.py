"""Runs a launcher and kills its own process just before the n-th call of one function.

`python killed_run.py LAUNCHER MODULE:FUNCTION N ARGUMENTS...`; the function may be a method, `MODULE:CLASS.METHOD`.
"""

import importlib
import os
import runpy
import signal
import sys


def kill_before(name: str, number: int) -> None:
    """Has this process killed just before that function's `number`-th call."""
    module_name, path = name.split(":")
    *owners, attribute = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, attribute), 0

    def killed(*arguments: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, attribute, killed)


def main() -> None:
    launcher, function, number, *arguments = sys.argv[1:]
    kill_before(function, int(number))
    sys.argv = [launcher, *arguments]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main()
