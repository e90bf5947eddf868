"""From records of answers to scores by task, by length and by set, and the section of the report that shows them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config import Variant
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.long_context.suite import Suite as Benchmark
from pipeline.evaluation.long_context.suite import TaskSpec
from pipeline.evaluation.published import averages_table
from pipeline.evaluation.suite import Record, Section, Table
from pipeline.evaluation.variant_style import LABELS

Means = dict[Variant, float]


def summarise_scores(
    suite: str, tasks: Sequence[TaskSpec], variants: Sequence[Variant], records: Mapping[str, Record]
) -> dict[str, Any]:
    """Scores are means x 100 over examples; averages are means of tasks' scores, each task counting the same.

    Returns:
        `tasks`: by name, the metric, numbers of `examples` and of those `truncated`, mean `prompt_tokens`, and by
        variant `score` with `ci95` (bootstrap over examples; None for fewer than three). `average` by variant; of
        LV-Eval also `lengths` and `sets`, each by name and variant.
    """
    by_task: dict[str, dict[Variant, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for key, record in records.items():
        task, _, variant = key.split("/")
        by_task[task][variant].append(record)
    found = {task.name: _summarise_task(task, variants, by_task[task.name]) for task in tasks}
    summary: dict[str, Any] = {"tasks": found, "average": _average(found.values(), variants)}
    if suite == "lveval":
        for name, part in (("sets", 0), ("lengths", 2)):
            groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for task, values in found.items():
                groups[task.rpartition("_")[part]].append(values)
            summary[name] = {group: _average(values, variants) for group, values in groups.items()}
    return summary


def _summarise_task(
    task: TaskSpec, variants: Sequence[Variant], records: Mapping[Variant, list[Record]]
) -> dict[str, Any]:
    of_one = records[variants[0]]  # all variants read the same prompts
    scores = {}
    for variant in variants:
        values = np.array([record["score"] for record in records[variant]])
        interval = paired_interval(
            np.stack([values, np.ones_like(values)], 1),
            lambda sums: 100 * sums[:, 0] / sums[:, 1],
            limits=(0.0, 100.0),
        )
        scores[variant] = {
            "score": 100 * float(values.mean()),
            "ci95": None if interval is None else list(interval),
            "seconds": float(np.mean([record["seconds"] for record in records[variant]])),
        }
    return {
        "metric": task.metric,
        "examples": len(of_one),
        "truncated": sum(record["truncated"] for record in of_one),
        "prompt_tokens": float(np.mean([record["prompt_tokens"] for record in of_one])),
        "scores": scores,
    }


def _average(tasks: Iterable[dict[str, Any]], variants: Sequence[Variant]) -> Means:
    tasks = list(tasks)
    return {variant: float(np.mean([task["scores"][variant]["score"] for task in tasks])) for variant in variants}


def make_section(benchmark: Benchmark, summary: Mapping[str, Any]) -> Section:
    """Averages, tasks with their intervals, and the published averages beside."""
    variants: list[Variant] = list(summary["average"])
    tasks, labels = summary["tasks"], [LABELS[variant] for variant in variants]

    def row(name: str, means: Mapping[Variant, float]) -> list[str]:
        return [name, *(f"{means[variant]:.2f}" for variant in variants)]

    rows = [row(f"{length}, mean of sets", means) for length, means in summary.get("lengths", {}).items()]
    rows += [row(f"{name}, mean of lengths", means) for name, means in summary.get("sets", {}).items()]
    rows.append(row(f"mean of {len(tasks)} task{'s' * (len(tasks) > 1)}", summary["average"]))
    averages = Table(("", *labels), rows, "Mean score x 100; tasks count the same", emphasised=(len(rows) - 1,))
    header = ("task", "metric", "examples", "shortened", "prompt tokens", *labels)
    by_task = [
        [
            name,
            task["metric"],
            str(task["examples"]),
            str(task["truncated"]),
            f"{task['prompt_tokens']:,.0f}",
            *(_with_interval(task["scores"][variant]) for variant in variants),
        ]
        for name, task in tasks.items()
    ]
    num_examples = sum(task["examples"] for task in tasks.values())
    num_truncated = sum(task["truncated"] for task in tasks.values())
    num_bad = sum(summary["bad_rows"].values())
    return Section(
        title=benchmark.title,
        lead=(
            f"{num_examples} examples of {len(tasks)} of {len(benchmark.tasks)} tasks. All variants read the same "
            f"prompt{', as one user message in the chat template' if summary['chat'] else ''}: the limit of prompt and "
            f"answer is {summary['context']:,} tokens, the base's max_position_embeddings (times --yarn_factor with "
            f"full_yarn); {num_truncated} longer prompts lost their middle."
            + (f" {num_bad} rows of the files could not be read and are left out." if num_bad else "")
        ),
        tables=(
            averages,
            Table(header, by_task, "By task, with 95 % bootstrap intervals over examples", is_folded=True),
            averages_table(benchmark.name),
        ),
        note=(
            "Scores are those of the benchmark's official code. The published rows are of other models and of the "
            "paper's choice of tasks; its code scores InfiniteBench's questions with ROUGE."
            if benchmark.name == "infinitebench"
            else "Scores are those of the benchmark's official code."
        ),
    )


def _with_interval(score: Mapping[str, Any]) -> str:
    if score["ci95"] is None:
        return f"{score['score']:.2f}"
    low, high = score["ci95"]
    return f"{score['score']:.2f} ({low:.2f} to {high:.2f})"
