"""Whether loaded tasks of lm-eval have the examples that --samples, --num_fewshot and the processes need."""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from lm_eval.api.task import Task
from lm_eval.config.evaluate_config import EvaluatorConfig

from pipeline.errors import UserError


def example_counter(config: EvaluatorConfig) -> Callable[[str, int], int]:
    """Maps a task's name and its number of examples to how many of them --limit or --samples leaves."""
    samples: Mapping[str, Any] = config.samples or {}

    def count(task: str, num: int) -> int:
        if task in samples:
            return len(samples[task])
        if config.limit is None:
            return num
        return min(num, int(config.limit) if config.limit >= 1 else ceil(num * config.limit))

    return count


def check_examples(config: EvaluatorConfig, num_processes: int, tasks: Mapping[str, Task]) -> None:
    """
    Raises:
        UserError: --samples names another task or an example that is not there, a task has fewer rows than
            --num_fewshot takes, or fewer examples than there are processes.
    """
    for name, numbers in (config.samples or {}).items():
        if name not in tasks:
            raise UserError(f"--samples {name}: not among the tasks of --tasks; they are {', '.join(tasks)}")
        num = len(tasks[name].eval_docs)
        if numbers[-1] >= num:
            raise UserError(f"--samples {name}: example {numbers[-1]} of {num}; they are numbered from 0 to {num - 1}")
    count = example_counter(config)
    for name, task in tasks.items():
        _check_fewshot(config.num_fewshot, name, task)
        num = count(name, len(task.eval_docs)) if num_processes > 1 else num_processes
        if num < num_processes:
            raise UserError(f"--tasks {name}: {num} examples for {num_processes} processes; start fewer")


def _check_fewshot(num_fewshot: int | None, name: str, task: Task) -> None:
    if not num_fewshot or task.config.num_fewshot == 0 or not hasattr(task, "sampler"):
        return  # a task that says 0 keeps it
    own = task.fewshot_cfg.split == task.config.test_split  # then the example itself is left out
    num = len(task.sampler.df) - own
    if num_fewshot > num:
        raise UserError(f"--num_fewshot {num_fewshot}: {name} has {num} examples to show; give at most {num}")
