"""Runs any task of lm-eval on a model: LongBench, LongBench-v2, RULER, BABILong, and whatever else it has.

    python launchers/run_eval.py --fetch longbench --data_root ROOT      # once, where there is a network
    python -m pipeline.evaluation.lm_eval_run --data_root ROOT --model ahn --tasks longbench_hotpotqa \\
        --model_args pretrained=RUN/adapter,window_size=1920

is lm-eval's own command line with the model `ahn` registered, whose arguments are those of `HippocampusLM`, and the
tasks of `LocalTasks`, LV-Eval among them. With --data_root nothing is fetched: datasets come from there, models and
tokenizers from where they are. From Python: `pipeline.evaluation.lm_eval_harness.run_lm_eval`.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

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
    sys.argv[1:] = rest
    if own.data_root is not None:
        check_fetched(tasks_of(rest), own.data_root)
        enter_offline(own.data_root)

    # Only now: `datasets` and NLTK read their variables when they are imported.
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    import pipeline.evaluation.lm_eval_model  # noqa: F401 (registers `ahn`)
    from pipeline.evaluation.lm_eval_tasks import LocalTasks

    if "--trust_remote_code" not in rest:
        trust_no_tokenizer_code()
    if own.data_root is not None:
        read_ruler_questions_from(own.data_root)
    lm_eval.tasks.TaskManager = partial(LocalTasks, own.data_root, "--apply_chat_template" in rest)
    cli_evaluate()


def tasks_of(arguments: Sequence[str]) -> list[str]:
    """Names after --tasks, which lm-eval takes with commas or spaces between."""
    after = [part for flag in arguments for part in flag.split("=", 1)]
    if "--tasks" not in after:
        return []
    names = takewhile(lambda part: not part.startswith("-"), after[after.index("--tasks") + 1 :])
    return [name for part in names for name in part.split(",")]


if __name__ == "__main__":
    run_cli(main)
