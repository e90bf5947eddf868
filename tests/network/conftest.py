"""Two hosts for a test, a small run's input, and that run on one host; the tests skip where there are no rights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.hosts import TwoHosts, why_not
from tests.training.launched_runs import make_inputs


@pytest.fixture(scope="session")
def two_hosts_possible() -> None:
    """Asked for before anything that takes time."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"tests of two hosts: {reason}")


@pytest.fixture
def hosts(two_hosts_possible) -> Iterator[TwoHosts]:
    """Two hosts that reach each other."""
    with TwoHosts() as pair:
        yield pair


@pytest.fixture(scope="session")
def inputs(two_hosts_possible, tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))
