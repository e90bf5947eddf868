"""Runs a launcher, one rank of which goes into an endless loop at the n-th call of one function.

`python stuck_run.py LAUNCHER MODULE:FUNCTION N RANK ARGUMENTS...`; the function may be a method, `MODULE:CLASS.METHOD`.
"""

import importlib
import os
import runpy
import sys


def spin_forever() -> None:
    while True:
        pass


def stick_at(name: str, number: int) -> None:
    """Has this process spin instead of that function's `number`-th call."""
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
            spin_forever()
        return original(*arguments, **keywords)

    setattr(owner, attribute, counted)


def main() -> None:
    launcher, function, number, rank, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        stick_at(function, int(number))
    sys.argv = [launcher, *arguments]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main()
