"""Scores of the AHN paper (arXiv 2510.07318 v2), for tables beside a run's own. Nothing else of theirs is repeated."""

from typing import Literal

from pipeline.evaluation.suite import Table

SOURCE = "arXiv 2510.07318 v2"
SIZES = ("3B", "7B", "14B")
METHODS = (
    "full attention",
    "sinks + window",
    "Compressive Transformer, max",
    "Compressive Transformer, average",
    "AHN-Mamba2",
    "AHN-DeltaNet",
    "AHN-GatedDeltaNet",
)
AVERAGES_128K = {  # by method, a value for each of SIZES
    "lveval": (
        (4.41, 3.62, 4.99),
        (4.59, 5.34, 5.69),
        (4.12, 4.82, 5.28),
        (4.47, 5.28, 5.64),
        (5.13, 6.21, 6.43),
        (5.68, 6.82, 6.50),
        (5.88, 6.54, 6.51),
    ),
    "infinitebench": (
        (9.52, 13.50, 12.21),
        (10.47, 13.16, 12.54),
        (10.00, 13.00, 11.66),
        (10.81, 13.31, 11.95),
        (12.44, 14.21, 15.21),
        (13.51, 16.48, 17.48),
        (13.24, 16.93, 16.52),
    ),
}
NIAH_7B = {  # RULER-128k, by method: single_1, single_2, single_3
    "full attention": (98.6, 97.2, 98.4),
    "sinks + window": (26.8, 25.4, 28.0),
    "AHN-GatedDeltaNet": (26.8, 25.2, 28.2),
}
LONGBENCH_ABLATIONS_7B = {  # AHN-GatedDeltaNet, average of LongBench, by how it was trained
    "KL, window drawn": 40.59,
    "cross entropy, window drawn": 39.59,
    "KL, window of 1,024": 38.53,
}
_TITLES = {"lveval": "LV-Eval", "infinitebench": "InfiniteBench QA"}


def averages_table(benchmark: Literal["lveval", "infinitebench"]) -> Table:
    """Averages at 128k of every method and size."""
    rows = [
        [method, *(f"{value:.2f}" for value in values)]
        for method, values in zip(METHODS, AVERAGES_128K[benchmark], strict=True)
    ]
    caption = f"Published ({SOURCE}): {_TITLES[benchmark]}, average at 128k, Qwen2.5-Instruct, S = 128, R = 32,640"
    return Table(("method", *SIZES), rows, caption)


def niah_table() -> Table:
    """Needles in RULER's haystacks of 128k tokens, Qwen2.5-7B-Instruct."""
    rows = [[method, *(f"{value:.1f}" for value in values)] for method, values in NIAH_7B.items()]
    caption = f"Published ({SOURCE}): RULER-128k, Qwen2.5-7B-Instruct, S = 128, R = 32,640"
    return Table(("method", "niah_single_1", "niah_single_2", "niah_single_3"), rows, caption)


def longbench_ablations_table() -> Table:
    """What the training's loss and its windows are worth."""
    rows = [[trained, f"{value:.2f}"] for trained, value in LONGBENCH_ABLATIONS_7B.items()]
    return Table(("training", "LongBench"), rows, f"Published ({SOURCE}): AHN-GatedDeltaNet, Qwen2.5-7B-Instruct")
