"""Runs as one of two ranks: several training runs one after another in one process, for
test_cached_teacher.py and test_topologies.py.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python cached_runs.py RUNS.json

RUNS.json is a list of [arguments of train.py, step to stop after or null]; each leaves its run folder. All have the
same --sequence_parallel_size.
"""

import json
import sys
from pathlib import Path

from pipeline.config import TrainRunConfig, parse_cli
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.training.preflight import preflight
from pipeline.training.stop_flag import StopFlag
from pipeline.training.trainer import Trainer


class StopAfter(StopFlag):
    """Asks the trainer to stop once it has done `step` steps."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step, self.trainer = step, None

    def __bool__(self) -> bool:
        return self.trainer is not None and self.trainer.state.step == self.step


def main() -> None:
    runs = [
        (parse_cli(TrainRunConfig, arguments), stop) for arguments, stop in json.loads(Path(sys.argv[1]).read_text())
    ]
    ranks = init_distributed(runs[0][0].sequence_parallel_size)
    for config, stop_after in runs:
        stop = StopAfter(stop_after)
        stop.trainer = Trainer(preflight(config), stop, ranks)
        stop.trainer.run()
    leave_distributed()


if __name__ == "__main__":
    main()
