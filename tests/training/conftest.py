"""One small run without a break, for all tests that interrupt its like."""

from pathlib import Path

import pytest

from tests.distributed.processes import TRAIN, run_ranks
from tests.training.launched_runs import arguments, make_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("launcher"))


@pytest.fixture(scope="session")
def uninterrupted(inputs, tmp_path_factory) -> Path:
    """The run folder of two ranks that no launcher started."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished = run_ranks(TRAIN, arguments(inputs, folder / "run"), folder, timeout=200)
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-3000:]
    return folder / "run"
