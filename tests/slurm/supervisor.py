"""Process 1 of a test cluster: starts Slurm's daemons, serves until its input ends, and takes all with it.

`unshare --pid --mount-proc --fork --kill-child=KILL python supervisor.py FOLDER NODE...`, where FOLDER was written by
slurm_conf.py; prints "ready" when all nodes are idle. It is the first process of a PID namespace, so that the kernel
ends all daemons, steps and jobs when it ends, however it ends; its input ends when the test run does.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START_SECONDS = 30


class Supervisor:
    """The daemons of one cluster."""

    def __init__(self, folder: Path, nodes: list[str]) -> None:
        self._folder, self._nodes, self._daemons = folder, nodes, dict[int, str]()
        self._conf = str(folder / "slurm.conf")

    def start(self) -> None:
        """Returns when all nodes are idle.

        Raises:
            SystemExit: with the logs, when a daemon ended or took too long.
        """
        socket = self._folder / "munge.sock"
        files = {"key-file": "munge.key", "log-file": "munged.log", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self._folder / name}" for option, name in files.items()]
        self._spawn("munged", ["munged", "--foreground", f"--socket={socket}", *options])
        self._wait_until(socket.is_socket)
        self._spawn("slurmctld", [*self._on("head"), "slurmctld", "-D", "-c", "-f", self._conf])
        for node in self._nodes:
            self._spawn(f"slurmd-{node}", [*self._on(node), "slurmd", "-D", "-f", self._conf, "-N", node])
        self._wait_until(self._all_idle)

    def _on(self, host: str) -> list[str]:
        """The beginning of a command that runs under that host's name, and knows the others by theirs."""
        script = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        inside = ["unshare", "--uts", "--mount", "--propagation", "private"]
        return [*inside, "sh", "-c", script, "sh", host, str(self._folder / "hosts")]

    def _spawn(self, name: str, command: list[str]) -> None:
        with open(self._folder / f"{name}.out", "wb") as log:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._daemons[daemon.pid] = name

    def _all_idle(self) -> bool:
        command = ["sinfo", "--noheader", "--Node", "--format", "%N %t"]
        found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SLURM_CONF": self._conf})
        return found.stdout.splitlines() == [f"{node} idle" for node in self._nodes]

    def _wait_until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_done():
            self.reap()
            if time.monotonic() > deadline:
                self._fail(f"the cluster did not start within {START_SECONDS} s")
            time.sleep(0.02)

    def reap(self) -> None:
        """Waits for the processes that ended: the daemons' children become ours. A daemon must not end."""
        while (pid := self._ended_child()) is not None:
            if pid in self._daemons:
                self._fail(f"{self._daemons[pid]} ended")

    def _ended_child(self) -> int | None:
        try:
            return os.waitpid(-1, os.WNOHANG)[0] or None
        except ChildProcessError:
            return None

    def _fail(self, reason: str) -> None:
        logs = [f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in self._folder.glob("*.out")]
        sys.exit("\n".join([reason, *logs]))


def main() -> None:
    assert os.getpid() == 1, "must be the first process of a PID namespace: it kills all that it sees"
    folder, nodes = Path(sys.argv[1]), sys.argv[2:]
    supervisor = Supervisor(folder, nodes)
    try:
        supervisor.start()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0.1)[0]:  # readable: at its end
            supervisor.reap()
    finally:
        os.kill(-1, signal.SIGKILL)  # all but this process, in this namespace
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
