"""From records of answers to scores by task, by length and by set."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config import Variant
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.evictions import summarise_evictions
from pipeline.evaluation.long_context.suite import TaskSpec
from pipeline.evaluation.stratified import TaskDraws, draw_task, mean_intervals
from pipeline.evaluation.suite import Record

Average = dict[Variant, dict[str, Any]]


def summarise_scores(
    suite: str, tasks: Sequence[TaskSpec], variants: Sequence[Variant], records: Mapping[str, Record]
) -> dict[str, Any]:
    """Scores are means x 100 over examples; averages are means of tasks' scores, each task counting the same.

    Returns:
        `tasks`: by name, the metric, numbers of `examples` and of those `truncated`, mean `prompt_tokens`, what was
        `evicted` (as `summarise_evictions` says), and by
        variant `score` with `ci95` (bootstrap over examples; None for fewer than three). `average`: by variant `score`,
        `over_window`, what it is above the window's (None of the window, and without it), and `ci95` of both, paired
        (None where a task has fewer than three examples, or all have the window's score). Of LV-Eval also `lengths`
        and `sets`, each by name the same.
    """
    by_task: dict[str, dict[Variant, dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    for key, record in records.items():
        task, line, variant = key.split("/")
        by_task[task][variant][line] = record
    found = {task.name: _summarise_task(task, variants, by_task[task.name]) for task in tasks}
    draws = {
        task.name: draw_task(_values(variants, by_task[task.name]), seed=(0, number))
        for number, task in enumerate(tasks)
    }
    summary: dict[str, Any] = {"tasks": found, "average": _average(list(draws.values()), variants)}
    if suite == "lveval":
        for name, part in (("sets", 0), ("lengths", 2)):
            groups: dict[str, list[TaskDraws]] = defaultdict(list)
            for task, of_task in draws.items():
                groups[task.rpartition("_")[part]].append(of_task)
            summary[name] = {group: _average(of_group, variants) for group, of_group in groups.items()}
    return summary


def _summarise_task(
    task: TaskSpec, variants: Sequence[Variant], records: Mapping[Variant, Mapping[str, Record]]
) -> dict[str, Any]:
    of_one = records[variants[0]].values()  # all variants read the same prompts
    scores = {}
    for variant in variants:
        values = np.array([record["score"] for record in records[variant].values()])
        interval = paired_interval(
            np.stack([values, np.ones_like(values)], 1),
            lambda sums: 100 * sums[:, 0] / sums[:, 1],
            limits=(0.0, 100.0),
        )
        scores[variant] = {
            "score": 100 * float(values.mean()),
            "ci95": None if interval is None else list(interval),
            "seconds": float(np.mean([record["seconds"] for record in records[variant].values()])),
        }
    return {
        "metric": task.metric,
        "examples": len(of_one),
        "truncated": sum(record["truncated"] for record in of_one),
        "evicted": summarise_evictions(Counter(record["evicted"] for record in of_one)),
        "prompt_tokens": float(np.mean([record["prompt_tokens"] for record in of_one])),
        "scores": scores,
    }


def _values(variants: Sequence[Variant], records: Mapping[Variant, Mapping[str, Record]]) -> np.ndarray:
    """Scores x 100 of a task's examples by variant, float64 [n, V]; with `window` also what they are above its, 2 V."""
    lines = list(records[variants[0]])
    scores = 100 * np.array([[records[variant][line]["score"] for variant in variants] for line in lines])
    if "window" not in variants:
        return scores
    return np.concatenate([scores, scores - scores[:, [variants.index("window")]]], 1)


def _average(tasks: Sequence[TaskDraws], variants: Sequence[Variant]) -> Average:
    """Of draws of `_values`."""
    count, means = len(variants), np.mean([task.mean for task in tasks], 0).tolist()
    limits = [(0.0, 100.0)] * count + [(-np.inf, np.inf)] * (len(means) - count)
    intervals = [None if interval is None else list(interval) for interval in mean_intervals(tasks, limits)]
    found: Average = {}
    for index, variant in enumerate(variants):
        is_compared = variant != "window" and "window" in variants
        found[variant] = {
            "score": means[index],
            "ci95": intervals[index],
            "over_window": means[count + index] if is_compared else None,
            "over_window_ci95": intervals[count + index] if is_compared else None,
        }
    return found
