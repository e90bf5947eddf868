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
_WHOLE = "whole, or with --max_context so many tokens, template and answer included: a longer one loses its middle"
PROTOCOLS = {  # what the paper's code does (ByteDance-Seed/AHN at 3d2d174, eval/), and what is done here
    "lveval": (
        ("sets", "all 11 at 128k", "those of --tasks"),
        ("prompt", "256,000 tokens at most before the chat template; a longer one loses its middle", _WHOLE),
        ("its text and the metric", "the benchmark's", "the benchmark's"),
    ),
    "infinitebench": (
        ("sets", "longbook_qa_eng, longbook_qa_chn", "those of --tasks"),
        (
            "prompt",
            "128,000 tokens at most (256,000 in LV-Eval) before the chat template; a longer one loses its beginning",
            _WHOLE,
        ),
        ("its text", "one of its own for both sets, 256 new tokens", "the benchmark's for open models, 40 new tokens"),
        ("metric", "ROUGE-L", "the benchmark's: F1 over words, of Chinese over characters"),
    ),
    "longbench": (
        (
            "sets",
            "dureader, hotpotqa, musique, narrativeqa, qmsum, triviaqa",
            "the same in paper_longbench; longbench has 21",
        ),
        ("sinks and window", "S = 128, R = 8,064", "those of --model_args"),
        (
            "prompt",
            "32,000 tokens at most before the chat template; a longer one loses its beginning",
            "the same in paper_longbench; in longbench whole, or cut in its middle to max_length",
        ),
        (
            "chat template",
            "around all but triviaqa",
            "with --apply_chat_template the same in paper_longbench, around all in longbench",
        ),
        (
            "answer",
            "up to the next question or document that it makes up; qmsum: 500 new tokens",
            "the same in paper_longbench; in longbench all of it, qmsum: 512",
        ),
    ),
}
_TITLES = {"longbench": "LongBench", "lveval": "LV-Eval", "infinitebench": "InfiniteBench QA"}


def averages_table(benchmark: Literal["lveval", "infinitebench"]) -> Table:
    """Averages at 128k of every method and size."""
    rows = [
        [method, *(f"{value:.2f}" for value in values)]
        for method, values in zip(METHODS, AVERAGES_128K[benchmark], strict=True)
    ]
    caption = f"Published ({SOURCE}): {_TITLES[benchmark]}, average at 128k, Qwen2.5-Instruct, S = 128, R = 32,640"
    return Table(("method", *SIZES), rows, caption)


def protocol_table(benchmark: Literal["lveval", "infinitebench", "longbench"]) -> Table:
    """How the paper's figures were measured, and where those here differ."""
    caption = f"{_TITLES[benchmark]}: how the published figures were measured, and those here"
    return Table(("", "published", "here"), PROTOCOLS[benchmark], caption)


def longbench_table() -> Table:
    """The average that the paper's ablations begin with."""
    value = LONGBENCH_ABLATIONS_7B["KL, window drawn"]
    caption = f"Published ({SOURCE}): LongBench, average, Qwen2.5-7B-Instruct, S = 128, R = 8,064"
    return Table(("method", "7B"), [["AHN-GatedDeltaNet", f"{value:.2f}"]], caption)


def niah_table() -> Table:
    """Needles in RULER's haystacks of 128k tokens, Qwen2.5-7B-Instruct."""
    rows = [[method, *(f"{value:.1f}" for value in values)] for method, values in NIAH_7B.items()]
    caption = f"Published ({SOURCE}): RULER-128k, Qwen2.5-7B-Instruct, S = 128, R = 32,640"
    return Table(("method", "niah_single_1", "niah_single_2", "niah_single_3"), rows, caption)


def longbench_ablations_table() -> Table:
    """What the training's loss and its windows are worth."""
    rows = [[trained, f"{value:.2f}"] for trained, value in LONGBENCH_ABLATIONS_7B.items()]
    return Table(("training", "LongBench"), rows, f"Published ({SOURCE}): AHN-GatedDeltaNet, Qwen2.5-7B-Instruct")
