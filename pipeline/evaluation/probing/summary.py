"""From the records of suite `probing` to numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.probing.ratios import relative_log_ratios
from pipeline.evaluation.probing.token_classes import CLASSES, classify
from pipeline.evaluation.suite import Record

NUM_BINS = 16
NEIGHBOURS = 16
INTACT, SILENT = "none", "all"


def bin_shares(shares: Tensor, length: int, window: WindowSpec) -> tuple[list[list[float | None]], list[int]]:
    """Means of `shares` [layers, E] in bins of distance past W, the same for all texts of at most `length` tokens.

    Returns:
        [layers][bins], None where a short text has no token; tokens of each bin.
    """
    width = bin_width(length, window)
    parts = [shares[:, start : start + width] for start in range(0, NUM_BINS * width, width)]
    means = [[float(row.mean()) if len(row) else None for row in part] for part in parts]
    return [list(of_layer) for of_layer in zip(*means, strict=True)], [part.shape[1] for part in parts]


def bin_width(length: int, window: WindowSpec) -> int:
    """Tokens of a bin."""
    return -(-(length - window.lossless_budget) // NUM_BINS)


def summarise(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`classes`: mean gradient norms by kind of token, with the number of `texts` that have it; `shares`
    [layers][bins], |memory read| / |attention output|; `layers`: KL to full attention in nats per token with all
    memories, with none, and without each layer's."""
    probed = [record for record in records if "norms" in record]
    return {
        "num_texts": len(probed),
        "classes": _by_class(probed, tokenizer),
        "shares": _mean_shares(probed),
        "layers": _by_layer([record for record in records if "kl" in record]),
    }


def _by_class(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """`relative`: mean over tokens of a norm over that of its neighbourhood, with its 95 % interval over texts.

    Gradients fall with the distance from the queries and differ from text to text, and so do kinds of tokens. `ratio`,
    with an interval likewise: the geometric mean, over the tokens that have one, of what ratios.py tells of each; None
    without any.
    """
    # tokens, norms, norms relative to their neighbourhoods; tokens with a ratio, their logarithms
    sums = np.zeros((len(records), len(CLASSES), 5))
    for of_text, record in zip(sums, records, strict=True):
        norms = np.array(record["norms"])
        relative = norms / neighbourhood_means(norms)
        ratios = relative_log_ratios(norms, record["without_memory"], NEIGHBOURS)
        has_ratio = ~np.isnan(ratios)
        tokens = record["ids"][record["first"] : record["first"] + len(norms)]
        for token, *values in zip(tokens, norms, relative, has_ratio, np.nan_to_num(ratios), strict=True):
            of_text[CLASSES.index(classify(tokenizer, token))] += (1, *values)
    rows = []
    for index, name in enumerate(CLASSES):
        of_class = sums[sums[:, index, 0] > 0, index]
        if len(of_class):
            count, norm, relative, *_ = of_class.sum(0).tolist()
            interval = paired_interval(of_class, lambda totals: totals[:, 2] / totals[:, 0])
            row = {"class": name, "texts": len(of_class), "tokens": int(count)}
            row |= {"mean_norm": norm / count, "relative": relative / count}
            row |= {"relative_ci95": None if interval is None else list(interval)}
            rows.append(row | _ratio_of(of_class[of_class[:, 3] > 0]))
    return rows


def _ratio_of(sums: np.ndarray) -> dict[str, Any]:
    if not len(sums):
        return {"ratio": None, "ratio_ci95": None}
    interval = paired_interval(sums, lambda totals: totals[:, 4] / totals[:, 3])
    ratio = np.exp(sums[:, 4].sum() / sums[:, 3].sum())
    return {"ratio": float(ratio), "ratio_ci95": None if interval is None else np.exp(interval).tolist()}


def neighbourhood_means(norms: np.ndarray) -> np.ndarray:
    """Of each token's norm and those of up to NEIGHBOURS on either side; 1 where all are 0."""
    sums = np.concatenate([[0.0], np.cumsum(norms)])
    index = np.arange(len(norms))
    low, high = np.maximum(index - NEIGHBOURS, 0), np.minimum(index + NEIGHBOURS + 1, len(norms))
    means = (sums[high] - sums[low]) / (high - low)
    return np.where(means > 0, means, 1.0)


def _mean_shares(records: Sequence[Record]) -> list[list[float | None]]:
    counts = np.array([record["counts"] for record in records], dtype=np.float64)
    shares = np.array([record["shares"] for record in records], dtype=np.float64)  # None becomes NaN
    totals = (np.nan_to_num(shares) * counts[:, None]).sum(0)
    return [
        [total / count if count else None for total, count in zip(row.tolist(), counts.sum(0).tolist(), strict=True)]
        for row in totals
    ]


def _by_layer(records: Sequence[Record]) -> dict[str, Any]:
    texts: dict[str, dict[str, float]] = {}
    for record in records:
        texts.setdefault(record["document"], {"num_positions": record["num_positions"]}).update(record["kl"])
    names = [INTACT, SILENT, *sorted((n for n in next(iter(texts.values())) if n.isdecimal()), key=int)]
    sums = {n: np.array([(t["num_positions"], t[INTACT], t[n]) for t in texts.values()], np.float64) for n in names}

    def row(name: str) -> dict[str, Any]:
        tokens, intact, without = sums[name].sum(0)
        interval = paired_interval(sums[name], lambda t: (t[:, 2] - t[:, 1]) / t[:, 0])
        return {
            "kl": without / tokens,
            "effect": (without - intact) / tokens,
            "effect_ci95": None if interval is None else list(interval),
        }

    return {
        "texts": len(texts),
        "tokens": int(sums[INTACT][:, 0].sum()),
        "intact": sums[INTACT][:, 1].sum() / sums[INTACT][:, 0].sum(),
        "silent": row(SILENT),
        "without": [{"layer": int(name), **row(name)} for name in names[2:]],
    }
