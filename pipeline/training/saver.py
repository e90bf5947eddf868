"""Writes what a step left, adapter and checkpoint, at once or while the next steps run.

A background save works on copies, so training goes on meanwhile; it is over before the next one begins and before the
run ends. An error in it is found at the next step, where it ends all ranks.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from safetensors import SafetensorError

from pipeline.errors import UserError


class Saver:
    """The one thread that writes; on the main rank, idle on the others.

    Args:
        in_background: `save` returns while the thread still writes.
    """

    def __init__(self, in_background: bool) -> None:
        self._in_background = in_background
        self._thread = ThreadPoolExecutor(1, "save")
        self._last: Future[None] | None = None

    def save(self, write: Callable[[], None], what: str) -> None:
        """Has `write` called, once the save before it is over and if that went well.

        Args:
            what: is written, for a message.
        """
        if self.wait() is None:
            self._last = self._thread.submit(_call, write, what)
            if not self._in_background:
                wait([self._last])

    def error(self) -> UserError | None:
        """Why the last save failed, if that is known yet."""
        if self._last is None or not self._last.done():
            return None
        error = self._last.exception()
        if error is None or isinstance(error, UserError):
            return error
        raise error

    def wait(self) -> UserError | None:
        """The same, once the last save is over."""
        if self._last is not None:
            wait([self._last])
        return self.error()

    def close(self) -> None:
        """Lets the last save come to its end."""
        self._thread.shutdown()


def cannot_write(what: str, error: OSError | SafetensorError) -> UserError:
    """One line for a full disk and its like."""
    return UserError(
        f"cannot write {what}: {error}; what was saved before is whole: make room in --output and start again to go on"
    )


def _call(write: Callable[[], None], what: str) -> None:
    try:
        write()
    except (OSError, SafetensorError) as error:
        raise cannot_write(what, error) from error
