"""Runs any task of lm-eval on a model: LongBench, LongBench-v2, RULER, BABILong, and whatever else it has.

    python launchers/run_eval.py --fetch longbench --data_root ROOT      # once, where there is a network
    python -m pipeline.evaluation.lm_eval_run --data_root ROOT --model ahn --tasks longbench_hotpotqa \\
        --model_args pretrained=RUN/adapter,window_size=1920

is lm-eval's own command line with the model `ahn` registered, whose arguments are those of `HippocampusLM`, and the
tasks of `LocalTasks`, LV-Eval among them. With --data_root nothing is fetched: datasets come from there, models and
tokenizers from where they are. Under torchrun, deepspeed, mpiexec or srun each process holds the model and takes its
share of every task (`torchrun --nproc_per_node 8 -m pipeline.evaluation.lm_eval_run ...`). From Python:
`pipeline.evaluation.lm_eval_harness.run_lm_eval`.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist

from pipeline.distributed.interface import choose_gloo_interface
from pipeline.distributed.launch import adopt_launcher
from pipeline.errors import run_cli
from pipeline.evaluation.long_context.lm_eval_data import (
    check_fetched,
    enter_offline,
    read_ruler_questions_from,
    trust_no_tokenizer_code,
)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_root", type=Path)
    own, rest = parser.parse_known_args()
    sys.argv[1:], theirs = rest, peek(rest)
    if own.data_root is not None:
        check_fetched(theirs.tasks, own.data_root)
        enter_offline(own.data_root)
    num_processes = join_processes()

    # Only now: `datasets` and NLTK read their variables when they are imported.
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    import pipeline.evaluation.lm_eval_model  # noqa: F401 (registers `ahn`)
    from pipeline.evaluation.lm_eval_tasks import LocalTasks

    if not theirs.trust_remote_code:
        trust_no_tokenizer_code()
    if own.data_root is not None:
        read_ruler_questions_from(own.data_root)
    ours = {"apply_chat_template": theirs.apply_chat_template, "limit": theirs.limit, "num_processes": num_processes}
    lm_eval.tasks.TaskManager = partial(LocalTasks, own.data_root, **ours)
    cli_evaluate()
    if num_processes > 1:
        from pipeline.distributed.groups import leave_distributed

        leave_distributed()


def join_processes() -> int:
    """Meets the launcher's other processes, if there are any; returns the number of all."""
    place = adopt_launcher()
    if place.world_size > 1:
        choose_gloo_interface()
        dist.init_process_group("gloo", timeout=timedelta(weeks=52))  # some have their share done hours before others
    return place.world_size


def peek(arguments: Sequence[str]) -> argparse.Namespace:
    """What concerns us of lm-eval's own arguments: tasks, limit, apply_chat_template, trust_remote_code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tasks", "-t", nargs="*", default=[])
    parser.add_argument("--limit", "-L", type=float)
    parser.add_argument("--apply_chat_template", nargs="?", const=True, default=False)
    parser.add_argument("--trust_remote_code", action="store_true")
    found, _ = parser.parse_known_args(arguments)
    found.tasks = [name for part in found.tasks for name in part.split(",")]
    found.apply_chat_template = bool(found.apply_chat_template)
    return found


if __name__ == "__main__":
    run_cli(main)
