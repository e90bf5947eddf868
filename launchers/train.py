"""Distils an AHN memory into a frozen base model; run folder out, resumable at any instant.

    deepspeed --num_gpus 2 launchers/train.py --ds_config ds_configs/zero2.json \\
        --config launchers/recipes/demo.yaml --model MODEL --data DATA --output RUN

torchrun and plain python (one process) work too. SIGTERM or SIGUSR1: finishes the step, saves, exits 85; the same
command again goes on from there. Wrong input ends with one line and exit code 2.
"""

from pipeline.config import TrainRunConfig, parse_cli
from pipeline.errors import run_cli
from pipeline.training.stop_flag import StopFlag


def main() -> None:
    stop = StopFlag().install()
    config = parse_cli(TrainRunConfig)
    from pipeline.training.preflight import preflight

    plan = preflight(config)
    from pipeline.training.trainer import run_training  # torch, transformers and deepspeed: seconds

    run_training(plan, stop)


if __name__ == "__main__":
    run_cli(main)
