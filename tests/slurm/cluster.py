"""A real Slurm cluster on this machine for the time of a test session: munged, slurmctld and one slurmd a node."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.slurm.slurm_conf import write_cluster

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NAMESPACE = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
SUPERVISOR = Path(__file__).with_name("supervisor.py")
UNFINISHED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)} (`make slurm` installs them)"
    probe = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
    return f"no PID namespace is to be had: {probe.stderr.strip()}" if probe.returncode else None


class Cluster:
    """A cluster to use as a context manager; nothing of it is left afterwards, nor when this process is killed.

    `environment` is what Slurm's commands need to find it.

    Args:
        num_nodes: node1, node2, ...
        num_cpus: of each node; need not be there.
        num_gpus: of each node; only the scheduler takes them for GPUs.
    """

    def __init__(self, num_nodes: int = 2, num_cpus: int = 4, num_gpus: int = 2) -> None:
        self._nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        self._size = (num_cpus, num_gpus)

    def __enter__(self) -> "Cluster":
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: sockets' names are limited
        write_cluster(self.folder, self._nodes, *self._size)
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.environment = outer | {"PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        command = [*NAMESPACE, sys.executable, str(SUPERVISOR), str(self.folder), *self._nodes]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._supervisor = subprocess.Popen(command, text=True, env=outer | {"PATH": PATH}, **pipes)
        if self._supervisor.stdout.readline() != "ready\n":
            raise RuntimeError(self._supervisor.communicate()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.communicate(timeout=30)  # ends its input, and so itself

    def run(self, *command: object, cwd: Path | None = None, **env: str) -> str:
        """What the command, one of Slurm's, prints on stdout."""
        return subprocess.run(
            [str(part) for part in command],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=cwd,
            env=self.environment | env,
        ).stdout

    def submit(self, *arguments: object, cwd: Path | None = None, **env: str) -> str:
        """The number of the job that sbatch makes of those arguments."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **env).strip()

    def describe(self, job: str) -> list[dict[str, str]]:
        """What scontrol says of the job: one set of fields for each task of an array; values end at a space."""
        lines = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def wait(self, job: str, timeout: float = 120) -> list[dict[str, str]]:
        """`describe`, when all of the job has ended.

        Raises:
            TimeoutError: it has not.
        """
        deadline = time.monotonic() + timeout
        while True:
            tasks = self.describe(job)
            if not any(task["JobState"] in UNFINISHED for task in tasks):
                return tasks
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} has not ended within {timeout} s: {tasks}")
            time.sleep(0.1)
