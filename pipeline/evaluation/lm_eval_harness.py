"""Runs tasks of lm-eval on a model from Python: LongBench, LongBench-v2, RULER, BABILong, and whatever else it has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.infinitebench import lm_eval_variant
from pipeline.evaluation.lm_eval_model import HippocampusLM

LmEvalTask = str | dict[str, Any] | Task | Group
NOT_OFFICIAL = {lm_eval_variant.GROUP: lm_eval_variant.LABEL}  # first word of a task: its results' label


class Tasks(TaskManager):
    """Takes tasks with changes, and says in one line what keeps a task from being loaded."""

    def load(self, task_list: Any) -> Any:
        """As lm-eval's; {"task": NAME, ...} with the name of a task is that task with these changes.

        Raises:
            UserError: no such task, a package it needs is missing, or its data is not on this machine.
        """
        specs = task_list if isinstance(task_list, list) else [task_list]
        unknown = [s for s in specs if isinstance(s, str) and s not in self.all_tasks and not Path(s).is_file()]
        if unknown:
            raise no_such_task(unknown[0])
        built: list[Task | Group] = []
        for spec in specs:
            try:
                built += self._build(spec)
            except ImportError as error:
                raise UserError(f"--tasks {_name(spec)}: a package is missing: {_one_line(error)}") from error
            except OSError as error:  # the hub's and the network's errors are OSErrors
                raise UserError(
                    f"--tasks {_name(spec)}: its data cannot be loaded ({_one_line(error)}); run it once where the "
                    f"Hugging Face hub can be reached, with the same HF_HOME, or name local files (dataset_path)"
                ) from error
        try:
            return super().load(built)
        except ValueError as error:  # a task by its name and in a group
            raise UserError(f"--tasks {','.join(map(_name, specs))}: {_one_line(error)}") from error

    def _build(self, spec: LmEvalTask) -> Sequence[Task | Group]:
        if isinstance(spec, dict) and spec.get("task") in self.all_tasks:
            spec = {"group": "changed", "task": [spec]}  # lm-eval changes members of groups only
            return list(super().load(spec)["tasks"].values())
        if isinstance(spec, Task | Group):
            return [spec]
        loaded = super().load(spec)
        named = loaded["groups"].get(spec.get("group") if isinstance(spec, dict) else spec)
        return [named] if named is not None else list(loaded["tasks"].values())


def no_such_task(name: str) -> UserError:
    """To be raised."""
    command = "python -m pipeline.evaluation.lm_eval_run ls tasks"
    return UserError(f"--tasks {name}: lm-eval has no such task; `{command}` lists them")


def _name(spec: LmEvalTask) -> str:
    return str(spec.get("group", spec.get("task"))) if isinstance(spec, dict) else str(spec)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[LmEvalTask],
    *,
    prefill_chunk: int = 2048,
    max_length: int | None = None,
    truncation_side: Literal["middle", "left"] = "middle",
    apply_chat_template: bool = False,
    metadata: dict[str, Any] | None = None,
    include_path: Path | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Runs tasks of lm-eval on a model.

    Args:
        model: an AHN model or a base with full attention, on its device.
        tokenizer: of the model.
        tasks: names of tasks, groups and tags; a task with changes, such as {"task": "longbench_hotpotqa",
            "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": FILE}}} for data
            of this machine; or tasks and groups themselves (`lveval_group`).
        prefill_chunk, max_length, truncation_side: as `HippocampusLM` takes them.
        apply_chat_template: each prompt as one user message in the tokenizer's template.
        metadata: what some tasks are built with, such as {"max_seq_lengths": [131072]} for RULER.
        include_path: a folder with more tasks.
        options: of `lm_eval.simple_evaluate`: limit, num_fewshot, gen_kwargs, log_samples, bootstrap_iters, ...

    Returns:
        lm-eval's results. Added: "truncation", which gives by task its requests and how many of them lost part of
        their context, to `max_length` or by a task that cuts its own prompts and has a metric `truncated`. Results of
        InfiniteBench tasks are labelled, in their alias, as those of lm-eval's variant. Where torch.distributed is
        initialised, all processes call this, and share the work; those but the first get None.

    Raises:
        UserError: no such task, its data or packages are missing, or the model does not fit it.
    """
    if apply_chat_template and tokenizer.chat_template is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no chat template; leave apply_chat_template out")
    lm = HippocampusLM(
        model, tokenizer, prefill_chunk=prefill_chunk, max_length=max_length, truncation_side=truncation_side
    )
    names = {"tokenizer": tokenizer.name_or_path}
    by_name = not all(isinstance(task, Task | Group) for task in tasks)  # else lm-eval's index of tasks is not needed
    manager = Tasks(metadata=names | (metadata or {}), include_path=include_path, include_defaults=by_name)
    results = simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, apply_chat_template=apply_chat_template, **options
    )
    if results is None:
        return None
    scores = results["results"]
    num_requests, num_truncated = lm.count_all()
    results["truncation"] = {
        task: {"requests": count, "truncated": num_truncated[task] + scores[task].get("truncated,none", 0)}
        for task, count in num_requests.items()
    }
    _label_variants(results)
    return results


def _label_variants(results: dict[str, Any]) -> None:
    for of_tasks in (results["results"], results.get("groups", {})):
        for name, score in of_tasks.items():
            label = NOT_OFFICIAL.get(name.split("_")[0])
            if label is not None:
                score["alias"] = f"{score['alias']} ({label})"
