"""How the tools that look at a folder of shards end: 0, or 1 with one line on stderr."""

import os
import sys
from collections.abc import Callable

from pipeline.errors import UserError, escape_controls


def run_tool(work: Callable[[], None]) -> int:
    """Runs a tool's work and returns its exit code; what the user can get wrong becomes one line."""
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        print(f"error: {escape_controls(str(error))}", file=sys.stderr)
        return 1
    return 0
