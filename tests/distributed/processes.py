"""Starts real ranks for tests: each command in a session of its own that is killed as a whole, also on time-out."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.distributed.launch import free_port
from tests.fork_server import Forked, can_fork, fork_server

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "launchers" / "train.py"
DEEPSPEED = Path(sys.executable).with_name("deepspeed")


@dataclass
class Finished:
    returncode: int
    output: str
    seconds: float


def environment(**extra: str) -> dict[str, str]:
    """One thread a rank, so that results repeat to the last bit; no variables of a surrounding launcher."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | extra


@contextmanager
def started(
    command: Sequence[object], log: Path, env: dict[str, str], cwd: Path | None = None
) -> Iterator[subprocess.Popen]:
    """The running command, its output going to `log`; nothing of it is left afterwards."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(x) for x in command], stdout=sink, stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True
        )
        try:
            yield process
        finally:
            kill_group(process)


@contextmanager
def forked(command: Sequence[object], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen | Forked]:
    """As `started` Python with that command, a script and what follows it, but without seconds of imports."""
    if not can_fork():
        with started([sys.executable, *command], log, env) as process:
            yield process
        return
    log.unlink(missing_ok=True)
    process = fork_server().start([str(x) for x in command], env, str(Path.cwd()), [os.devnull, str(log), str(log)])
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen | Forked) -> None:
    """SIGKILL to the command and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: Sequence[object], log: Path, *, timeout: float = 120, cwd: Path | None = None, **env: str) -> Finished:
    """Runs a command to its end."""
    begin = time.monotonic()
    with started(command, log, environment(**env), cwd) as process:
        returncode = process.wait(timeout)
    return Finished(returncode, log.read_text(errors="replace"), time.monotonic() - begin)


def run_ranks(
    script: Path,
    arguments: Sequence[object],
    folder: Path,
    *,
    num_ranks: int = 2,
    timeout: float = 120,
    meanwhile: Callable[[int], None] | None = None,
    anew: bool = False,
    **env: str,
) -> list[Finished]:
    """Runs `script` as several ranks without a launcher in between, so that each rank's own end is seen.

    `meanwhile` is called with the first rank's process id while they run. The ranks are forks of a process that has
    imported torch, unless they are to be started `anew`, as those are of which is to be seen what they do before that.
    """
    begin, command = time.monotonic(), [script, *arguments]
    address = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **env}
    logs = [folder / f"rank{rank}.log" for rank in range(num_ranks)]
    with ExitStack() as stack:
        processes = []
        for rank, log in enumerate(logs):
            own = environment(RANK=str(rank), LOCAL_RANK=str(rank), **address)
            process = started([sys.executable, *command], log, own) if anew else forked(command, log, own)
            processes.append(stack.enter_context(process))
        if meanwhile is not None:
            meanwhile(processes[0].pid)
        codes = [process.wait(max(1.0, timeout - (time.monotonic() - begin))) for process in processes]
    seconds = time.monotonic() - begin
    return [Finished(code, log.read_text(errors="replace"), seconds) for code, log in zip(codes, logs, strict=True)]


def deepspeed_command(num_ranks: int, arguments: Sequence[object]) -> list[object]:
    """The command line that the README gives, on a free port."""
    return [DEEPSPEED, "--num_gpus", num_ranks, "--master_port", free_port(), TRAIN, *arguments]
