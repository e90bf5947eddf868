"""Runs tasks of lm-eval on a model from Python: LongBench, LongBench-v2, RULER, BABILong, and whatever else it has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.infinitebench import lm_eval_variant
from pipeline.evaluation.lm_eval_loading import LmEvalTask, Tasks
from pipeline.evaluation.lm_eval_model import HippocampusLM

NOT_OFFICIAL = {lm_eval_variant.GROUP: lm_eval_variant.LABEL}  # first word of a task: its results' label


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
        their context, to `max_length` or by a task that cuts its own prompts and has a metric `truncated`; in "config",
        by task, what was `evicted` (`summarise_evictions`; None with full attention). Results of InfiniteBench tasks
        are labelled, in their alias, as those of lm-eval's variant. Where torch.distributed is initialised, all
        processes call this, and share the work; those but the first get None.

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
    results["config"]["device"] = str(lm.device)
    scores = results["results"]
    counts = lm.count_all()
    results["truncation"] = {
        task: {"requests": count, "truncated": counts.truncated[task] + scores[task].get("truncated,none", 0)}
        for task, count in counts.requests.items()
    }
    _label_variants(results)
    return results


def _label_variants(results: dict[str, Any]) -> None:
    for of_tasks in (results["results"], results.get("groups", {})):
        for name, score in of_tasks.items():
            label = NOT_OFFICIAL.get(name.split("_")[0])
            if label is not None:
                score["alias"] = f"{score['alias']} ({label})"
