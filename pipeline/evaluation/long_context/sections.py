"""Suites `lveval` and `infinitebench` in the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Variant
from pipeline.evaluation.long_context.suite import Suite as Benchmark
from pipeline.evaluation.positions import describe_beyond
from pipeline.evaluation.published import averages_table, protocol_table
from pipeline.evaluation.suite import Section, Table
from pipeline.evaluation.variant_style import label

INTERVALS = (
    "Intervals: 95 %, bootstrap of the examples of each task, stretched for few of them; none where a task has fewer "
    "than three, nor of a difference that all examples have alike."
)
OFFICIAL_CODE = {
    "lveval": "Scores are those of the benchmark's official code.",
    "infinitebench": "Scores are those of the benchmark's official code. The paper's code scores InfiniteBench's "
    "questions with ROUGE, so its figures are no measure for these.",
}


def make_section(benchmark: Benchmark, summary: Mapping[str, Any]) -> Section:
    """Averages, what they are above the window's, tasks, and the published averages beside."""
    tasks, labels = summary["tasks"], [_label(variant, summary) for variant in summary["average"]]
    header = ("task", "metric", "examples", "shortened", "prompt tokens", "evicted", "evict any", *labels)
    by_task = [
        [
            name,
            task["metric"],
            str(task["examples"]),
            str(task["truncated"]),
            f"{task['prompt_tokens']:,.0f}",
            f"{task['evicted']['mean']:,.0f}",
            f"{task['evicted']['share']:.0%}",
            *(_with_interval(score["score"], score["ci95"]) for score in task["scores"].values()),
        ]
        for name, task in tasks.items()
    ]
    num_examples = sum(task["examples"] for task in tasks.values())
    num_truncated = sum(task["truncated"] for task in tasks.values())
    num_bad = sum(summary["bad_rows"].values())
    context = summary["context"]
    return Section(
        title=benchmark.title,
        lead=(
            f"{num_examples} examples of {len(tasks)} of {len(benchmark.tasks)} tasks. All variants read the same "
            f"prompt{', as one user message in the chat template' if summary['chat'] else ''}, "
            + (
                "whole."
                if context is None
                else f"of at most {context:,} tokens with its answer (--max_context); {num_truncated} longer prompts "
                f"lost their middle."
            )
            + (f" {num_bad} rows of the files could not be read and are left out." if num_bad else "")
            + "".join(f" {sentence}" for sentence in say_beyond(summary))
        ),
        tables=(
            *_averages(summary),
            Table(header, by_task, "By task, with 95 % bootstrap intervals over examples", is_folded=True),
            averages_table(benchmark.name),
            protocol_table(benchmark.name),
        ),
        note=f"{INTERVALS} {OFFICIAL_CODE[benchmark.name]}",
    )


def say_beyond(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each variant with full attention that has too few positions for some prompts."""
    return [describe_beyond(beyond, label(variant)) for variant, beyond in summary["beyond_positions"].items()]


def _label(variant: Variant, summary: Mapping[str, Any]) -> str:
    beyond = summary["beyond_positions"].get(variant)
    return label(variant) + (f" (past its {beyond['positions']:,} positions)" if beyond else "")


def _averages(summary: Mapping[str, Any]) -> list[Table]:
    """Scores of all variants and, where one is the window, what the others' are above its."""
    num_tasks = len(summary["tasks"])
    averages = {f"{length}, mean of sets": average for length, average in summary.get("lengths", {}).items()}
    averages |= {f"{name}, mean of lengths": average for name, average in summary.get("sets", {}).items()}
    averages[f"mean of {num_tasks} task{'s' * (num_tasks > 1)}"] = summary["average"]

    def table(key: str, caption: str, style: str = ".2f") -> Table:
        shown = [variant for variant, of_variant in summary["average"].items() if of_variant[key] is not None]
        interval = "ci95" if key == "score" else f"{key}_ci95"
        rows = [
            [name, *(_with_interval(average[variant][key], average[variant][interval], style) for variant in shown)]
            for name, average in averages.items()
        ]
        return Table(("", *(_label(variant, summary) for variant in shown)), rows, caption, emphasised=(len(rows) - 1,))

    means = table("score", "Mean score x 100, with 95 % bootstrap intervals; tasks count the same")
    over = table("over_window", "The same above sinks + window, paired over examples", "+.2f")
    return [means, over] if len(over.header) > 1 else [means]


def _with_interval(value: float, bounds: Sequence[float] | None, style: str = ".2f") -> str:
    if bounds is None:
        return f"{value:{style}}"
    return f"{value:{style}} ({bounds[0]:{style}} to {bounds[1]:{style}})"
