"""What lm-eval writes, its results and the answers it keeps: checked before a run, and failures told after it."""

import errno
import logging
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

TRACKER = "lm_eval.loggers.evaluation_tracker"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_folder(flag: str, folder: Path) -> None:
    """Makes the folder that `flag` (with its value) writes to.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"-")
    except OSError as error:
        raise UserError(f"{flag}: cannot be written ({error.strerror}); name another folder") from error


def check_answers(path: str, rank: int) -> None:
    """Checks --use_cache's file of this process, whose name lm-eval makes from `path`.

    Raises:
        UserError: it cannot be written, or is no file of kept answers.
    """
    file = Path(f"{path}_rank{rank}.db")
    check_folder(f"--use_cache {path}", file.parent)
    if not file.exists():
        return
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True) as database:
            database.execute("BEGIN IMMEDIATE")
        database.close()
    except sqlite3.Error as error:
        raise UserError(f"--use_cache: {file} cannot be used ({error}); remove it, or give another path") from error


@contextmanager
def kept_answers() -> Iterator[None]:
    """lm-eval's run; answers that cannot be kept end it.

    Raises:
        UserError: the disk is full, or the database is damaged.
    """
    logging.getLogger("sqlitedict").setLevel(logging.CRITICAL)  # prints tracebacks of what it raises
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"--use_cache: answers could not be kept ({error}); free disk space, or give another path, and run again"
        ) from error


class FailedWrites(logging.Handler):
    """What lm-eval could not write of its results, which it logs and otherwise passes over."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[BaseException] = []
        logger = logging.getLogger(TRACKER)
        if not logger.isEnabledFor(logging.WARNING):  # LMEVAL_LOG_LEVEL=ERROR
            logger.setLevel(logging.WARNING)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called where the error is handled."""
        error = sys.exception()
        if error is not None:
            self.errors.append(error)

    def check(self, output_path: str | None) -> None:
        """
        Raises:
            UserError: a file could not be written.
        """
        logging.getLogger(TRACKER).removeHandler(self)
        if not self.errors:
            return
        error = self.errors[0]
        if not isinstance(error, OSError):
            raise error
        reason = error.strerror or " ".join(str(error).split())
        advice = "free disk space" if error.errno in _NO_SPACE else "mend that"
        raise UserError(
            f"--output_path {output_path}: results could not be written ({reason}); {advice} and run again; "
            f"--use_cache PATH keeps answers"
        ) from error
