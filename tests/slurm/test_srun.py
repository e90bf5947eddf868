"""launchers/train.py as one step of a job over two nodes, with nothing but srun."""

import json
import sys
from pathlib import Path

import pytest

from tests.distributed.processes import REPOSITORY, TRAIN, run_ranks
from tests.slurm.cluster import Cluster
from tests.training.launched_runs import arguments, make_inputs, mathematics

pytestmark = pytest.mark.slow
PLACE = """
import json, os
from pipeline.distributed.launch import adopt_launcher
adopt_launcher()
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
print(json.dumps([os.environ[name] for name in names]))
"""


def test_ranks_of_a_step_know_their_place_and_meet_on_its_first_host(slurm: Cluster) -> None:
    srun = ["srun", "--nodes", 2, "--ntasks-per-node", 2, sys.executable, "-c", PLACE]
    places = sorted(json.loads(line) for line in slurm.run(*srun, PYTHONPATH=str(REPOSITORY)).splitlines())
    assert [place[:4] for place in places] == [[str(r), "4", str(r % 2), "node1"] for r in range(4)]
    assert len({place[4] for place in places}) == 1 and int(places[0][4]) > 1024


def test_a_run_under_srun_is_the_run_of_two_processes(slurm: Cluster, tmp_path: Path) -> None:
    """The pretended hosts have no addresses, so MASTER_ADDR is given; the rest is srun's."""
    inputs, flags = make_inputs(tmp_path), ["--train.max_steps", "5"]
    script = tmp_path / "job.sh"
    command = [str(part) for part in (sys.executable, TRAIN, *arguments(inputs, tmp_path / "slurm", *flags))]
    script.write_text(f"#!/bin/bash\nexec srun {' '.join(command)}\n")
    log = tmp_path / "job.log"
    job = slurm.submit(
        *("--nodes", 2, "--ntasks", 2, "--output", log, script),
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(REPOSITORY),
        MASTER_ADDR="127.0.0.1",
    )
    assert slurm.wait(job)[0]["JobState"] == "COMPLETED", log.read_text()
    alike = run_ranks(TRAIN, arguments(inputs, tmp_path / "plain", *flags), tmp_path)
    assert [f.returncode for f in alike] == [0, 0], alike[0].output[-2000:]
    assert mathematics(tmp_path / "slurm") == mathematics(tmp_path / "plain")
