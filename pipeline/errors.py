"""The one error type that launchers print as a single line: what a user can get wrong; and how launchers end.

Standard library only, so that every layer may raise it. Anything else that escapes a launcher is a bug and
keeps its traceback.
"""

import atexit
import os
import sys
import unicodedata
from collections.abc import Callable

from pipeline.stop_signals import Interruption, leave

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell reports for Ctrl-C
GOES_ON = "ends now; what is finished is kept, and the same command goes on from there"
HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def escape_controls(text: str, kept: str = "") -> str:
    """The text with whatever moves the cursor, colours the terminal, turns the reading direction, ends a line or is no
    character (a byte of a file's name that is not UTF-8) written out, except for the characters of `kept`.
    """
    return "".join(
        character
        if character in kept or unicodedata.category(character) not in HIDDEN_CATEGORIES
        else character.encode("unicode_escape").decode()
        for character in text
    )


class UserError(ValueError):
    """Wrong flag, file or data. The message names the flag or file, what was found and what would work.

    As text it is one line that a terminal shows as it is, whatever the names in it are.
    """

    def __str__(self) -> str:
        return escape_controls(super().__str__())


_has_left_distributed = False


def note_left_distributed() -> None:
    """From now on the process is to end without the teardown of its C++ libraries, as `run_cli` does it.

    A rank whose work was all done and that had left its process group has been seen to abort in that teardown, for a
    thread of the communication library that was still there: a launcher would take the whole job for failed.
    """
    global _has_left_distributed
    _has_left_distributed = True


def run_cli(main: Callable[[], None], interrupted: str = "ends now") -> None:
    """Runs a launcher's `main`; a `UserError` becomes one line on stderr and exit code 2, Ctrl-C and SIGTERM become one
    at once, which says what comes of it (`interrupted`), and 130 and 143."""
    code, interruption = 0, Interruption(interrupted).install()
    try:
        main()
    except SystemExit as leaving:
        if not (_has_left_distributed and isinstance(leaving.code, int)):
            raise
        code = leaving.code
    except UserError as error:
        rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
        # At once: a rank that waits in a collective would otherwise keep this one in the interpreter's shutdown.
        leave(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        interruption.end()
    if _has_left_distributed:
        atexit._run_exitfuncs()
        leave(code)
