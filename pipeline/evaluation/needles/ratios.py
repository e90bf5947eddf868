"""Scores of many answers: ratios of sums over prompts or documents, with their intervals."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.config import Variant
from pipeline.evaluation.bootstrap import Statistic, paired_interval
from pipeline.evaluation.suite import Record

NUM_DRAWS = 2000
COLUMNS = ("answers", "recalled", "tokens", "log_prob", "top1")
RATIOS = {"recall": ("recalled", "answers"), "log_prob": ("log_prob", "tokens"), "top1": ("top1", "tokens")}
LIMITS = {"recall": (0.0, 1.0), "log_prob": (-np.inf, 0.0), "top1": (0.0, 1.0)}
RECOVERED = ("recall", "log_prob")
WITHOUT_LOSS: tuple[Variant, ...] = ("full", "full_yarn", "window")
"""Variants that have nothing to recover, or do not try."""


def sum_answers(answers: Iterable[Record]) -> np.ndarray:
    """COLUMNS of one prompt's or document's answers, float64 [5]."""
    rows = [[1.0, *(float(answer[name]) for name in COLUMNS[1:])] for answer in answers]
    return np.array(rows).reshape(-1, len(COLUMNS)).sum(0)


def score(sums: np.ndarray) -> dict[str, Any]:
    """`recall`: share of answers recalled; `log_prob`: mean over the answers' tokens, nats; `top1`: share of those
    tokens that are the likeliest of the vocabulary. Each with its 95 % interval, `*_ci95`. `units`: how many prompts or
    documents these are of.

    Args:
        sums: COLUMNS of P prompts or documents, float64 [P, 5]; those without answers are left out. None stands for a
            ratio without any, and for an interval of too few.
    """
    sums = sums[sums[:, 0] > 0]
    found: dict[str, Any] = {"units": len(sums)}
    for name in RATIOS:
        columns = _columns(sums, name)
        found[name] = float(_divide(columns.sum(0)[None])[0]) if len(columns) else None
        found[f"{name}_ci95"] = _interval(columns, _divide, LIMITS[name])
    return found


def recovered(full: np.ndarray, window: np.ndarray, variant: np.ndarray) -> dict[str, Any]:
    """(variant - window) / (full - window) of `recall` and `log_prob`, and `*_ci95`.

    None where full attention is no better than the window, in the whole or, for the interval, in a draw of it; and for
    an interval of too few prompts or documents, or of ones that do not differ.

    Args:
        full, window, variant: COLUMNS of the same P prompts or documents, float64 [P, 5].
    """
    has_answers = full[:, 0] > 0
    found: dict[str, Any] = {}
    for name in RECOVERED:
        sums = np.concatenate([_columns(x[has_answers], name) for x in (full, window, variant)], 1)
        value = float(_recovered_share(sums.sum(0)[None])[0]) if len(sums) else np.nan
        is_defined = bool(np.isfinite(value))
        found[name] = value if is_defined else None
        found[f"{name}_ci95"] = _interval(sums, _recovered_share) if is_defined else None
    return found


def log_prob_difference(better: np.ndarray, worse: np.ndarray) -> dict[str, Any]:
    """`difference` of two variants' log-probabilities in nats per token, and `difference_ci95`.

    Args:
        better, worse: COLUMNS of the same P prompts or documents, float64 [P, 5], all with answers.
    """
    tokens, log_prob = (COLUMNS.index(name) for name in ("tokens", "log_prob"))
    sums = np.stack([better[:, log_prob] - worse[:, log_prob], better[:, tokens]], 1)
    return {"difference": float(_divide(sums.sum(0)[None])[0]), "difference_ci95": _interval(sums, _divide)}


def _columns(sums: np.ndarray, name: str) -> np.ndarray:
    return sums[:, [COLUMNS.index(column) for column in RATIOS[name]]]


def _divide(totals: np.ndarray) -> np.ndarray:
    return totals[:, 0] / totals[:, 1]


def _recovered_share(totals: np.ndarray) -> np.ndarray:
    of_full, of_window, of_variant = (_divide(totals[:, i : i + 2]) for i in (0, 2, 4))
    lost = of_full - of_window
    return np.divide(of_variant - of_window, lost, out=np.full_like(lost, np.nan), where=lost > 0)


def _interval(
    sums: np.ndarray, statistic: Statistic, limits: tuple[float, float] = (-np.inf, np.inf)
) -> list[float] | None:
    found = paired_interval(sums, statistic, limits=limits, num_draws=NUM_DRAWS)
    return None if found is None else list(found)
