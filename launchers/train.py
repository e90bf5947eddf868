"""Distils an AHN memory into a frozen base model; run folder out, resumable at any instant.

    deepspeed --num_gpus 2 launchers/train.py --ds_config ds_configs/zero2.json \\
        --config launchers/recipes/demo.yaml --model MODEL --data DATA --output RUN

    torchrun --nproc_per_node 2 -- launchers/train.py ...
    mpiexec -n 2 python launchers/train.py ...              (also: srun python, or python alone for one process)

SIGTERM, SIGUSR1 or Ctrl-C: finishes the step, or in a long one the micro-batch, saves, exits 85; the same command again
goes on from there. Wrong input ends with one line and exit code 2.
"""

from pipeline.config import TrainRunConfig, parse_cli
from pipeline.distributed.launch import adopt_launcher
from pipeline.errors import run_cli
from pipeline.training.stop_flag import StopFlag


def main() -> None:
    stop = StopFlag().install()
    adopt_launcher()
    config = parse_cli(TrainRunConfig)
    from pipeline.training.preflight import preflight

    plan = preflight(config)
    from pipeline.distributed.deepspeed_check import check_deepspeed_config  # torch and deepspeed: seconds

    check_deepspeed_config(config.ds_config, plan.deepspeed)
    from pipeline.training.trainer import run_training  # also transformers

    run_training(plan, stop)


if __name__ == "__main__":
    run_cli(main)
