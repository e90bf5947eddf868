"""Keeps two runs out of one --output, on one host and across hosts. Standard library only.

    --output/.owner.json    of the run that writes there: host, process, Slurm job, start; gone when it ends by itself

The owner holds a lock on that file, which the kernel gives back when its process ends, however it ends, and sets the
file's time every BEAT_S seconds. A second run that finds the file
- locked is refused: the owner lives, on this host or, where the file system's locks reach that far, on another;
- of this host, and not locked, takes it over at once: the owner was killed;
- of another host takes it over once it has not been touched for STALE_S seconds, and is refused when it is touched.
A file system without locks leaves the process id on one host, and the same rule for others.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pipeline.errors import UserError

OWNER_NAME = ".owner.json"
BEAT_S, STALE_S = 5.0, 60.0
POLL_S = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock(Enum):
    """What came of asking for a lock."""

    OURS = "ours"
    TAKEN = "taken"
    """Another process, or thread, has it."""
    UNSUPPORTED = "unsupported"
    """The file system has no locks."""


def take_lock(descriptor: int, wait: bool = False) -> Lock:
    """Asks for the lock on an open file, which this process then holds until it closes the file or ends.

    Args:
        wait: until it is free, instead of TAKEN.

    Raises:
        OSError: the file system fails.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno in NO_LOCKS:
            return Lock.UNSUPPORTED
        raise
    return Lock.OURS


@contextmanager
def claimed_folder(output: Path) -> Iterator["FolderClaim"]:
    """While the block runs, no other process claims `output`, which is made if it is not there.

    Raises:
        UserError: another run has it, or it cannot be written.
    """
    claim = FolderClaim(output)
    try:
        yield claim
    finally:
        claim.release()


class FolderClaim:
    """`output` as this process's own; see the module's docstring.

    Raises:
        UserError: another run has it, or it cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._path, self._token = output, output / OWNER_NAME, secrets.token_hex(8)
        self._is_new = not output.exists()
        try:
            self._descriptor = self._take()
        except OSError as error:
            raise UserError(
                f"--output {output} cannot be written: {error.strerror}; name a folder that can be written"
            ) from error
        self._released = Event()
        self._thread = Thread(target=self._beat, name="owner-beat", daemon=True)
        self._thread.start()

    def error(self) -> UserError | None:
        """Why this process may not write to the folder any more: a run elsewhere took it for dead, and took over."""
        with suppress(OSError):  # out of reach: a write will say so, if it stays so
            if not self._is_ours():
                return UserError(
                    f"--output {self._output} was taken over by another run ({_describe(_read(self._path))}), as this "
                    f"one gave no sign of life for {STALE_S:g} s or its {OWNER_NAME} was removed; it ends without "
                    f"writing any more"
                )
        return None

    def check(self) -> None:
        """Raises `error`, where there is one."""
        if (error := self.error()) is not None:
            raise error

    def release(self) -> None:
        """Gives the folder back; an empty one that this claim made is removed."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # why the run ends counts; the next one finds out that this one did
            if self._is_ours():
                self._path.unlink(missing_ok=True)
            if self._is_new:
                self._output.rmdir()  # fails where something is in it
        os.close(self._descriptor)

    def _take(self) -> int:
        while True:
            self._output.mkdir(parents=True, exist_ok=True)
            # Whose it was may remove the record, or all of the folder, at any of these steps.
            with suppress(FileNotFoundError), ExitStack() as stack:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                stack.callback(os.close, descriptor)
                lock, owner = take_lock(descriptor), _read(self._path)
                if lock is Lock.TAKEN:
                    raise self._occupied(owner)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    if owner is not None and not _is_gone(owner, lock):
                        self._wait_for_silence(owner)
                    self._write(descriptor)
                    stack.pop_all()
                    return descriptor

    def _write(self, descriptor: int) -> None:
        content = json.dumps(_describe_process() | {"token": self._token}, indent=1).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)

    def _wait_for_silence(self, owner: dict[str, Any]) -> None:
        """Returns when the owner, of another host, has given no sign of life for STALE_S seconds.

        Raises:
            UserError: it gives one.
            FileNotFoundError: it has ended by itself.
        """
        touched = os.stat(self._path).st_mtime_ns
        silent_until = time.monotonic() + STALE_S - self._age(touched)
        if silent_until > time.monotonic():
            print(
                f"--output {self._output} was last written by {_describe(owner)}: waiting for a sign of life, at most "
                f"{silent_until - time.monotonic():.0f} s",
                file=sys.stderr,
                flush=True,
            )
        while time.monotonic() < silent_until:
            time.sleep(POLL_S)
            found = _read(self._path)  # opened first: that has NFS ask the server for the file's time
            if os.stat(self._path).st_mtime_ns != touched or found != owner:
                raise self._occupied(found)

    def _age(self, touched_ns: int) -> float:
        """Seconds since then by the clock of the file server, which need not be this host's."""
        probe = self._path.with_name(f"{OWNER_NAME}.{self._token}")
        probe.touch()
        now = probe.stat().st_mtime_ns
        probe.unlink()
        return max(0.0, (now - touched_ns) / 1e9)

    def _occupied(self, owner: dict[str, Any] | None) -> UserError:
        return UserError(
            f"--output {self._output}: another run is writing there ({_describe(owner)}); wait for its end, or choose "
            f"another folder"
        )

    def _is_ours(self) -> bool:
        owner = _read(self._path)
        return owner is not None and owner.get("token") == self._token

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with suppress(OSError):  # out of reach for now: `error` tells when it matters
                if self._is_ours():
                    os.utime(self._path)


def _describe_process() -> dict[str, Any]:
    """Who claims, for other processes to tell whether it lives and for people to find it."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "pid_started": _started(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _describe(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return f"its {OWNER_NAME} does not say which"
    job = f", Slurm job {owner['slurm_job']}" if owner.get("slurm_job") else ""
    return f"process {owner.get('pid')} on {owner.get('host')}{job}, since {owner.get('since')}"


def _read(path: Path) -> dict[str, Any] | None:
    """The record; None where there is none, or it is being written or damaged."""
    try:
        owner = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_gone(owner: dict[str, Any], lock: Lock) -> bool:
    """Whether the owner, whose lock was not in the way, has certainly ended: it was a process of this kernel."""
    if owner.get("boot") != _boot():
        return False
    if lock is Lock.OURS:
        return True
    is_in_sight = owner.get("pid_namespace") == os.readlink("/proc/self/ns/pid")  # not in another container
    return is_in_sight and _started(owner.get("pid")) != owner.get("pid_started")


def _boot() -> str:
    """Of this host's kernel, and no other's, until it is booted again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: object) -> str | None:
    """When the process began, in the kernel's ticks; None if it does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
