"""Runs as one of two ranks: loads a partitioned teacher and prints its number of weights, and of those held here.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python partition_job.py MODEL DS_CONFIG
"""

import json
import sys
from pathlib import Path

import numpy as np

from pipeline.config import TeacherCacheConfig
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.teacher.lock_step import LockStep
from pipeline.teacher.partition_config import load_partition_config
from pipeline.teacher.partitioned import PartitionedTeacher


def count_weights(teacher: PartitionedTeacher) -> tuple[int, int]:
    """Of the decoder: in all, and held by this rank (gathered weights are held whole)."""
    parameters = list(teacher._decoder.parameters())
    return sum(p.ds_numel for p in parameters), sum(p.numel() + p.ds_tensor.numel() for p in parameters)


def main() -> None:
    ranks = init_distributed()
    config = TeacherCacheConfig(model=sys.argv[1], data="", output=Path("out"), signal="hidden")
    settings = load_partition_config(Path(sys.argv[2]))
    teacher = PartitionedTeacher(config, ranks, LockStep(ranks), settings)
    teacher.load()
    num_weights, num_loaded = count_weights(teacher)
    sample = PackedSample("sample", np.arange(9, dtype=np.uint32), np.array([0, 9], np.int32), None, {})
    hidden = teacher.compute_hidden(sample, np.arange(9)) if ranks.is_main else None
    teacher.finish(lambda: None)
    facts = {"weights": num_weights, "loaded": num_loaded, "after": count_weights(teacher)[1]}
    facts |= {"dtype": str(teacher.head.weight.dtype), "computed": hidden is not None and hidden.shape[0]}
    print(json.dumps(facts))
    leave_distributed()


if __name__ == "__main__":
    main()
