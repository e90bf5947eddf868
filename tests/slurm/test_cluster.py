"""The cluster that the other tests use: it runs jobs on its nodes, and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.killing import marked_processes, new_mark
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from tests.slurm.cluster import Cluster
cluster = Cluster().__enter__()
cluster.submit("--wrap", "srun sh -c '>started; exec sleep 600'", "--chdir", cluster.folder)
while not (cluster.folder / "started").exists():
    pass
print(cluster.folder, flush=True)
sys.stdin.read()
"""


def test_a_job_runs_on_all_nodes_and_its_exit_code_is_seen(slurm: Cluster, tmp_path: Path) -> None:
    script = "srun hostname; exit 3"
    job = slurm.submit("--nodes", 2, "--ntasks-per-node", 2, "--output", tmp_path / "log", "--wrap", script)
    (task,) = slurm.wait(job)
    assert (task["JobState"], task["ExitCode"]) == ("FAILED", "3:0")
    assert sorted((tmp_path / "log").read_text().split()) == ["node1", "node1", "node2", "node2"]


def test_a_killed_test_run_leaves_no_process_and_no_folder(slurm: Cluster) -> None:
    mark, environment = new_mark()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=REPOSITORY, env=environment, **pipes) as run:
        folder = Path(run.stdout.readline().strip())
        commands = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in marked_processes(mark)}
        assert {b"munged", b"slurmctld", b"slurmd", b"sleep"} <= commands
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while folder.exists() or marked_processes(mark):
        assert time.monotonic() < deadline, [folder, *marked_processes(mark)]
