"""One Slurm cluster for all tests of a session; they skip where Slurm is not installed."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Two nodes of four CPUs and two pretended GPUs."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"Slurm tests: {reason}")
    with Cluster() as cluster:
        yield cluster
