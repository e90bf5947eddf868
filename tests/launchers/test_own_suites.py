"""All suites that need no download, at their defaults, on SmolLM2-135M with the demo's memory."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import OWN_SUITES
from pipeline.distributed.launch import free_port
from tests.distributed.processes import run
from tests.drill import record
from tests.launchers.conftest import REPOSITORY

LIMIT_S = 20 * 60
DEMO = REPOSITORY / "runs/demo"


@pytest.mark.drill
@pytest.mark.timeout(5400)
def test_all_own_suites_make_one_report_within_twenty_minutes(tmp_path) -> None:
    """The demo, which is kept in runs/demo, is run first where it is missing."""
    demo = run([sys.executable, REPOSITORY / "launchers/demo/run_demo.py"], tmp_path / "demo.log", timeout=3600)
    assert demo.returncode == 0, demo.output[-3000:]
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", 2, "--master_port", free_port(), "--"]
    model = ["--model", DEMO / "train/adapter", "--num_sink_tokens", 32, "--window_size", 96, "--run", DEMO / "train"]
    data = ["--data", DEMO / "data/heldout", "--max_documents", 16, "--pieces_per_document", 1]
    output = DEMO / f"own_suites_{time.time_ns()}"
    command = [*torchrun, REPOSITORY / "launchers/run_eval.py", *model, *data, "--output", output]
    finished = run(command, tmp_path / "eval.log", timeout=2 * LIMIT_S)
    assert finished.returncode == 0, finished.output[-3000:]
    report = json.loads((output / "report.json").read_text())
    assert list(report) == list(OWN_SUITES)
    assert not re.search(r'(src|href)="(?!data:|#)|url\(', (output / "report.html").read_text())
    record("own_suites", {"minutes": round(finished.seconds / 60, 1), "report": str(output.name), **report})
    assert finished.seconds <= LIMIT_S
