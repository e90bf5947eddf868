"""Runs the full-attention teacher once over packed data; train.py --teacher_cache then distils without it.

    python launchers/cache_teacher.py --model MODEL --data DATA --output CACHE --signal hidden --dry_run
    deepspeed --num_gpus 8 launchers/cache_teacher.py --model MODEL --data DATA --output CACHE --signal hidden
    torchrun --nproc_per_node 8 -- launchers/cache_teacher.py ...    (with the --, or it takes --signal for its own)
    srun python launchers/cache_teacher.py ...                       (also: mpiexec -n 8, job arrays, by hand)

A teacher that does not fit on one GPU: --ds_config ds_configs/zero3.json, under any of these launchers. Samples whose
activations do not fit: --forward_chunk 4096, or, in less time, --sequence_parallel_size 8, for 8 ranks to a sample.

Processes find their work by locks on the missing shards, so they may be of several jobs, and may come and go. The same
command again does what is missing. Wrong input ends with one line and exit code 2.
"""

from pipeline.byte_counts import format_bytes
from pipeline.config import TeacherCacheConfig, parse_cli, require
from pipeline.distributed.launch import adopt_launcher, find_rank
from pipeline.errors import GOES_ON, run_cli
from pipeline.teacher.capture_plan import plan_capture, share_teacher_heads
from pipeline.teacher.capture_size import check_space, describe_plan, free_bytes
from pipeline.teacher.partition_config import load_partition_config


def main() -> None:
    config = parse_cli(TeacherCacheConfig)
    works_alone = config.ds_config is None and config.sequence_parallel_size == 1
    ranks = find_rank() if works_alone else adopt_launcher()
    settings = None if config.ds_config is None else load_partition_config(config.ds_config)
    plan = plan_capture(config)
    require(
        ranks.world_size % config.sequence_parallel_size == 0 or config.dry_run,
        f"--sequence_parallel_size {config.sequence_parallel_size} does not divide the {ranks.world_size} ranks of "
        f"this job",
    )
    if config.dry_run:
        if ranks.rank == 0:
            print(describe_plan(plan))
        return
    check_space(plan, free_bytes(config.output))
    if config.sequence_parallel_size > 1:
        from pipeline.teacher.sequence_parallel import run_sequence_parallel  # also deepspeed

        outcome = run_sequence_parallel(plan, share_teacher_heads(config))
    elif settings is None:
        from pipeline.teacher.capture import run_capture  # torch and transformers: seconds

        outcome = run_capture(plan, ranks.rank, ranks.world_size, ranks.local_rank)
    else:
        from pipeline.teacher.partitioned import run_partitioned  # also deepspeed

        outcome = run_partitioned(plan, settings)
    print(f"wrote {outcome.num_shards} shards: {outcome.num_positions} positions, {format_bytes(outcome.num_bytes)}")
    if outcome.num_left:
        print(
            f"{config.output} lacks {outcome.num_left} shards, which other processes work on; the last of them "
            f"completes it. Should one of them die, run the same command again"
        )
    else:
        print(f"{config.output} is complete")


if __name__ == "__main__":
    run_cli(main, GOES_ON)
