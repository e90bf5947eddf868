"""Rank 0 waits for what the other processes measure."""

import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.evaluation.failures import UNKNOWN, find_failures
from pipeline.evaluation.records import EvaluationFolder
from pipeline.evaluation.suite import Suite, Unit

POLL_SECONDS, SECONDS_BETWEEN_LINES = 0.2, 10.0
SECONDS_TO_START = 30.0


def wait_for_all(
    work: Sequence[tuple[Suite, Unit]], folder: EvaluationFolder, num_ranks: int, patience: float = SECONDS_TO_START
) -> None:
    """Returns as soon as the other processes have measured theirs.

    A process that is killed is the launcher's to notice; one that fails says so in the folder. After `patience` seconds
    that is believed: what an earlier start has left there is gone by then.

    Raises:
        UserError: another process has failed, or another evaluation has taken the folder over.
    """
    count, started = finished_counter(work, folder), time.monotonic()
    shown = {"desc": "waiting for other ranks", "unit": "unit", "delay": 1, "mininterval": SECONDS_BETWEEN_LINES}
    with tqdm(total=len(work), initial=count(), **shown) as bar:
        while bar.n < len(work):
            time.sleep(POLL_SECONDS)
            folder.check_claim()
            folder.refresh()
            bar.update(count() - bar.n)
            if bar.n < len(work) and time.monotonic() - started > patience:
                for rank, reason in find_failures(folder.path, num_ranks).items():
                    told = f"; {reason}" if reason == UNKNOWN else f" ({reason})"
                    raise UserError(f"rank {rank} failed{told}; what is measured is kept, start again to go on")


def finished_counter(work: Sequence[tuple[Suite, Unit]], folder: EvaluationFolder) -> Callable[[], int]:
    """How many units of `work` have a record; the folder may hold other suites."""
    wanted = {(suite.name, unit.key) for suite, unit in work}
    return lambda: len(wanted & folder.records.keys())
