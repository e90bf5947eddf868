"""Runs any task of lm-eval on a model: LongBench, LongBench-v2, RULER, BABILong, and whatever else it has.

    python launchers/run_eval.py --fetch longbench --data_root ROOT      # once, where there is a network
    python -m pipeline.evaluation.lm_eval_run --data_root ROOT --model ahn --tasks longbench_hotpotqa \\
        --model_args pretrained=RUN/adapter,window_size=1920

It is lm-eval's own command line with the model `ahn` registered, whose arguments are those of `HippocampusLM`, and the
tasks of `LocalTasks`, LV-Eval among them. With --data_root nothing is fetched: datasets come from there, models and
tokenizers from where they are. Under torchrun, deepspeed, mpiexec or srun each process holds the model and takes its
share of every task (`torchrun --nproc_per_node 8 -m pipeline.evaluation.lm_eval_run ...`). From Python:
`pipeline.evaluation.lm_eval_harness.run_lm_eval`.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.distributed.interface import choose_gloo_interface
from pipeline.distributed.launch import adopt_launcher
from pipeline.errors import UserError, run_cli
from pipeline.evaluation.long_context.lm_eval_data import (
    check_fetched,
    enter_offline,
    read_ruler_questions_from,
    trust_no_tokenizer_code,
)
from pipeline.flags import Paragraphs, looks_like_flag, suggestion


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m pipeline.evaluation.lm_eval_run", add_help=False, allow_abbrev=False, usage="%(prog)s [FLAGS]",
        description=__doc__, formatter_class=Paragraphs,
    )  # fmt: skip
    parser.add_argument(
        "--data_root", type=Path, metavar="ROOT", help="folder that --fetch of launchers/run_eval.py has filled"
    )
    own, sys.argv[1:] = parser.parse_known_args()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(parser.format_help(), "\nlm-eval's own flags:\n", sep="", flush=True)
    if own.data_root is not None:
        enter_offline(own.data_root)

    # Only now: `datasets` and NLTK read their variables when they are imported.
    import lm_eval.tasks
    import lm_eval.utils
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    import pipeline.evaluation.lm_eval_model  # noqa: F401 (registers `ahn`)
    from pipeline.evaluation.lm_eval_tasks import LocalTasks
    from pipeline.evaluation.lm_eval_writing import FailedWrites, kept_answers

    setup_logging()
    harness = HarnessCLI()
    check_flags(harness._subparsers.choices.values())
    asked = harness.parse_args()
    options = prepare_run(asked, own.data_root) if asked.command == "run" else {}
    lm_eval.tasks.TaskManager = partial(LocalTasks, own.data_root, **options)
    lm_eval.utils.make_table = partial(table_below_evictions, lm_eval.utils.make_table)
    failed_writes = FailedWrites()
    with kept_answers():
        harness.execute(asked)
    if dist.is_initialized() and dist.get_world_size() > 1:
        from pipeline.distributed.groups import leave_distributed
        from pipeline.evaluation.lm_eval_shares import collective

        with collective():
            leave_distributed()
    failed_writes.check(vars(asked).get("output_path"))


def check_flags(parsers: Iterable[argparse.ArgumentParser]) -> None:
    """Refuses a flag that none of lm-eval's commands has, which argparse alone would not set right.

    Raises:
        UserError: that flag, and the nearest there is.
    """
    known = {"--data_root", "--help"} | {option for p in parsers for a in p._actions for option in a.option_strings}
    for argument in sys.argv[1:]:
        flag = argument.partition("=")[0]
        if looks_like_flag(flag) and not any(option.startswith(flag) for option in known):
            raise UserError(f"{flag}: no such flag{suggestion(flag, known)}; see --help")


def table_below_evictions(make_table: Callable[..., str], results: dict[str, Any], *arguments: Any) -> str:
    """lm-eval's table of tasks, below what they evicted; that of groups, and of other models, alone."""
    from pipeline.evaluation.lm_eval_counts import describe_run

    table = make_table(results, *arguments)
    is_ours = not arguments and "evicted" in results["config"]
    return f"{describe_run(results['config'])}\n{table}" if is_ours else table


def prepare_run(asked: argparse.Namespace, data_root: Path | None) -> dict[str, Any]:
    """Checks what is asked for and meets the launcher's other processes; returns options of `LocalTasks`.

    Raises:
        UserError: it cannot work.
    """
    from pipeline.evaluation.lm_eval_arguments import answers_file, check_model, read_config
    from pipeline.evaluation.lm_eval_examples import check_examples

    config = read_config(asked)
    if data_root is not None:
        check_fetched(config.tasks, data_root)
        read_ruler_questions_from(data_root)
    if config.model == "ahn":
        asked.use_cache = answers_file(config, check_model(config))
        if (config.device or "cuda").startswith("cuda") and not torch.cuda.is_available():
            asked.device = "cpu"  # that is what the model takes, and what the results are to say
    asked.output_path = config.output_path
    if not config.trust_remote_code:
        trust_no_tokenizer_code()
    return {
        "apply_chat_template": bool(config.apply_chat_template),
        "check_loaded": partial(check_examples, config, join_processes()),
    }


def join_processes() -> int:
    """Meets the launcher's other processes, if there are any; returns the number of all."""
    place = adopt_launcher()
    if place.world_size > 1:
        choose_gloo_interface()
        dist.init_process_group("gloo", timeout=timedelta(weeks=52))  # some have their share done hours before others
    return place.world_size


if __name__ == "__main__":
    run_cli(main, "ends now; a run again computes all but what --use_cache PATH keeps")
