"""LV-Eval as a task group of lm-eval: the official prompts, truncation and metrics, lm-eval's loop and tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.long_context.data_files import TaskData, locate_tasks
from pipeline.evaluation.long_context.suite import LongContextExample
from pipeline.evaluation.long_context.truncation import SEAM_TOKENS, MiddleTruncation, count_template_tokens
from pipeline.evaluation.lveval.tasks import LVEVAL


def lveval_group(
    data_root: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    tasks: Sequence[str] | None = None,
    apply_chat_template: bool = False,
) -> Group:
    """The group `lveval`, to be given to `run_lm_eval` among its tasks.

    Each task has its own metric (`keyword_f1`, `f1` or `rouge_l`), the same again as `score`, of which the group has
    the mean over tasks, and `truncated`, the number of prompts that lost their middle.

    Args:
        data_root: has the official files in its folder `lveval`.
        tokenizer: of the model.
        max_length: tokens of context, the new ones included; None: every prompt is whole.
        tasks: such as "hotpotwikiqa_mixup_16k". Default: all 55.
        apply_chat_template: whether prompts will be wrapped in the tokenizer's template, which takes room.

    Raises:
        UserError: no such task, files are missing, or nothing fits `max_length`.
        DataError: a file is damaged or has no row of its task.
    """
    specs = {spec.name: spec for spec in LVEVAL.tasks}
    names = list(specs) if tasks is None else tasks
    unknown = [name for name in names if name not in specs]
    if unknown:
        raise UserError(f"--tasks {unknown[0]}: LV-Eval has no such task; they are {next(iter(specs))} and so on")
    num_template_tokens = count_template_tokens(tokenizer) if apply_chat_template else 0
    score = AggMetricConfig(metric="score", aggregation="mean", weight_by_size=False)
    group = Group("lveval", alias="LV-Eval", aggregate_metric_list=[score], metadata={"version": 1})
    for data in locate_tasks(LVEVAL, [specs[name] for name in names], data_root):
        truncation = None
        if max_length is not None:
            room = max_length - data.task.max_new_tokens - num_template_tokens - SEAM_TOKENS
            if room < 2:
                raise UserError(
                    f"{data.task.name}: a context of {max_length} tokens leaves no room for its prompt; give a larger "
                    f"max_length"
                )
            truncation = MiddleTruncation(LVEVAL, tokenizer, room)
        group.add(_build_task(data, truncation))
    return group


def _build_task(data: TaskData, truncation: MiddleTruncation | None) -> ConfigurableTask:
    spec, rows = data.task, [_fit_row(example, truncation) for example in data]
    data.warn_of_bad_rows()

    def dataset(**_: object) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(rows)}

    def score(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
        example = LongContextExample(row["id"], spec.name, row["prompt"], tuple(row["references"]), row["keywords"])
        value = spec.score(answers[0], example)
        return {spec.metric: value, "score": value, "truncated": row["truncated"]}

    means = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in (spec.metric, "score")]
    config = {
        "task": f"lveval_{spec.name}",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "references",
        "process_results": score,
        "metric_list": [*means, {"metric": "truncated", "aggregation": sum, "higher_is_better": False}],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": spec.max_new_tokens},
        "num_fewshot": 0,
        "metadata": {"version": 1},
    }
    return ConfigurableTask(config=config)


def _fit_row(example: LongContextExample, truncation: MiddleTruncation | None) -> dict[str, Any]:
    prompt = example.prompt if truncation is None else truncation.fit(example)
    return {
        "id": example.id,
        "prompt": prompt,
        "references": list(example.references),
        "keywords": example.keywords,
        "truncated": int(prompt != example.prompt),
    }
