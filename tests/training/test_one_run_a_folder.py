"""A second training in an --output is refused, and one that is refused leaves nothing behind."""

import json
import os
import signal
import time

import pytest

from tests.distributed.processes import TRAIN, run_ranks
from tests.training.launched_runs import arguments, assert_one_line, assert_same_run, wait_for_step
from tests.training.synthetic import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_second_run_is_refused_on_every_rank_and_the_first_is_as_if_it_had_been_alone(
    inputs, uninterrupted, tmp_path
):
    output, others = tmp_path / "run", []
    (tmp_path / "second").mkdir()

    def start_another(first_pid: int) -> None:
        wait_for_step(output, 9, time.monotonic() + 60)
        os.kill(first_pid, signal.SIGSTOP)  # which the other must not take for an end
        others.extend(run_ranks(TRAIN, arguments(inputs, output), tmp_path / "second"))
        os.kill(first_pid, signal.SIGCONT)

    for finished in run_ranks(TRAIN, arguments(inputs, output), tmp_path, meanwhile=start_another):
        assert finished.returncode == 0, finished.output[-2000:]
    for finished in others:
        assert_one_line(finished, f"--output {output}: another run is writing there (process ")
    assert len(others) == 2
    assert_same_run(output, uninterrupted)
    assert not list(output.glob(".*"))


def test_a_refused_base_does_not_stand_in_the_way_of_the_right_one(inputs, tmp_path):
    output, refused = tmp_path / "run", make_model(tmp_path / "refused")
    settings = json.loads((refused / "config.json").read_text())
    (refused / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "gptq"}}))
    flags = ["--train.max_steps", "1", "--train.seed"]
    (finished,) = run_ranks(TRAIN, arguments(inputs, output, *flags, "5", model=refused), tmp_path, num_ranks=1)
    assert_one_line(finished, "quantised (gptq)")
    assert not output.exists()
    (finished,) = run_ranks(TRAIN, arguments(inputs, output, *flags, "6"), tmp_path, num_ranks=1)
    assert finished.returncode == 0, finished.output[-2000:]
    assert (output / "run.json").is_file()
