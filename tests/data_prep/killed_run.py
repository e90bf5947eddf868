"""Runs launchers/prepare.py and kills its own process just before the n-th call of one function.

`python killed_run.py MODULE:FUNCTION N LAUNCHER-ARGUMENTS...`; the function may be a method, `MODULE:CLASS.METHOD`.
"""

import importlib
import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    (module_name, path), number = sys.argv[1].split(":"), int(sys.argv[2])
    *owners, name = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def killed(*arguments: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, killed)
    launcher = Path(__file__).parents[2] / "launchers" / "prepare.py"
    sys.argv = [str(launcher), *sys.argv[3:]]
    runpy.run_path(str(launcher), run_name="__main__")


if __name__ == "__main__":
    main()
