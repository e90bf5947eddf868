"""launchers/train.py in halo mode: two ranks that hold each sample together train as one process with the teacher."""

from pathlib import Path

import pytest

from pipeline.config import TeacherCacheConfig, parse_cli
from pipeline.metrics.logger import read_metrics
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from tests.distributed.processes import REPOSITORY, TRAIN, run_ranks
from tests.teacher.capture_inputs import make_data, make_teacher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
NUM_STEPS = 6


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("halo_training")
    make_data(root / "data", make_teacher(root / "model"))
    named = [f"--model={root / 'model'}", f"--data={root / 'data'}", f"--output={root / 'cache'}"]
    flags = "--signal=hidden", "--base_dtype=float32", "--dtype=float32"
    plan = plan_capture(parse_cli(TeacherCacheConfig, [*named, *flags]))
    assert run_capture(plan, rank=0, num_ranks=1, local_rank=0).num_left == 0
    return root


def train(inputs: Path, output: str, num_ranks: int, *flags: str) -> list[dict]:
    given = {
        "model": inputs / "model",
        "data": inputs / "data",
        "output": inputs / output,
        "ds_config": REPOSITORY / "ds_configs" / "zero3.json",
        "window.budgets": [12, 16],
        "window.sinks": [0, 4],
        "train.max_steps": NUM_STEPS,
        "train.global_batch_size": 2,
        "train.learning_rate": 0.01,
        "train.base_dtype": "float32",
    }
    logs = inputs / f"{output}-{num_ranks}"
    logs.mkdir()
    arguments = [*(f"--{name}={value}" for name, value in given.items()), *flags]
    finished = run_ranks(TRAIN, arguments, logs, num_ranks=num_ranks)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    return read_metrics(inputs / output / "metrics.jsonl")


def test_a_run_in_halo_mode_is_the_run_of_one_process_with_the_teacher(inputs):
    due = train(inputs, "alone", 1)
    flags = "--sequence_parallel_size=2", "--sequence_parallel_mode=halo"
    found = train(inputs, "halo", 2, *flags, f"--teacher_cache={inputs / 'cache'}")
    for key, tolerance in (("loss/kl", 1e-4), ("optim/grad_norm", 1e-3)):
        expected = [row[key] for row in due]
        assert len(expected) == NUM_STEPS and min(expected) > 0
        assert [row[key] for row in found] == pytest.approx(expected, rel=tolerance)
    assert found[-1]["loss/kl"] != found[0]["loss/kl"]
