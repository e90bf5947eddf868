"""Suite `probing` in the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.probing.plots import plot_effects, plot_shares
from pipeline.evaluation.probing.ratios import relative_log_ratios
from pipeline.evaluation.probing.summary import NEIGHBOURS, bin_width
from pipeline.evaluation.probing.token_classes import NOT_PROBED, colours_of, words_of
from pipeline.evaluation.suite import Picture, Record, Section, Table

MAX_TEXTS, MAX_WORDS, WORDS_AFTER = 4, 1500, 256
ColouredWord = tuple[str, str, str]


def make_sections(
    summary: dict[str, Any],
    records: Sequence[Record],
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    window: WindowSpec,
) -> list[Section]:
    """Which tokens the memories keep, how loud they are, and which layers' matter."""
    probed = [record for record in records if "norms" in record]
    return [_tokens(summary, probed, tokenizer), _shares(summary, length, window), _layers(summary["layers"])]


def _tokens(summary: dict[str, Any], probed: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> Section:
    shown = probed[:MAX_TEXTS]
    texts = [_legend(), *(_coloured(record, tokenizer) for record in shown)]
    lead = (
        "How much the distillation loss of a text's last window would change with each token that has left it: the "
        "norm of its gradient with respect to the token's input embedding. Much of that need not come from the "
        "memory: the queries reach such tokens through the windows of the layers below, too, and rare tokens have "
        "large gradients under any attention. So what is shown is the ratio of the AHN's gradient to that with all "
        "memories off, compared with the same ratio of the neighbours. Red is large: the loss depends on the token "
        "through the memories, which tell too little of it or tell it wrongly. Green is small: with the memories the "
        "loss hardly depends on the token more than without, for what it tells is told already, is not asked for, or "
        "never entered the memory."
    )
    note = (
        "The loss is KL(full attention || AHN) summed over the last window's queries; colours go by the logarithm, "
        "from the 5th percentile of a text to the 95th; a token's title has its ratio, and the gradient itself. Sinks, "
        "tokens which those queries or the ones before them may still see, and tokens that no query reaches without "
        f"memories, are grey. {len(shown)} of {summary['num_texts']} texts shown. Ratios are relative to the geometric "
        f"mean of those of the {NEIGHBOURS} tokens on either side, and the table has their geometric means. The plain "
        "gradient, which the paper shows, is relative to its mean over as many. Intervals: 95 %, paired bootstrap over "
        "the texts that have such tokens; not defined for fewer than three, and where they do not differ."
    )
    rows = [
        [row["class"], f"{row['tokens']:,}", str(row.get("texts", "")),
         "-" if row["ratio"] is None else f"{row['ratio']:.2f}", _interval(row["ratio_ci95"], ".2f"),
         f"{row['mean_norm']:.3g}", f"{row['relative']:.2f}", _interval(row["relative_ci95"], ".2f")]
        for row in summary["classes"]
    ]  # fmt: skip
    header = ["tokens", "count", "texts", "AHN / memories off, relative to neighbours", "95 % interval",
              "mean gradient norm", "relative to neighbours", "95 % interval"]  # fmt: skip
    table = Table(header, rows)
    return Section("Which evicted tokens the loss depends on", lead, tables=[table], texts=texts, note=note)


def _legend() -> list[ColouredWord]:
    steps = zip((" small ", "      ", " middle ", "      ", " large "), colours_of([1, 2, 4, 8, 16]), strict=True)
    return [*((word, colour, "") for word, colour in steps), ("  ", "transparent", ""), (" grey ", NOT_PROBED, "")]


def _coloured(record: Record, tokenizer: PreTrainedTokenizerBase) -> list[ColouredWord]:
    """The text's probed tokens and what stands around them, at most MAX_WORDS."""
    ids, first, norms = record["ids"], record["first"], record["norms"]
    end = min(len(ids), first + len(norms) + WORDS_AFTER)
    start = max(0, end - MAX_WORDS)
    words = [(word, NOT_PROBED, "") for word in words_of(tokenizer, ids[:end])]
    ratios = relative_log_ratios(norms, record["without_memory"], NEIGHBOURS)
    coloured = np.flatnonzero(~np.isnan(ratios))
    for index, colour in zip(coloured, colours_of(np.exp(ratios[coloured])) if len(coloured) else [], strict=True):
        title = f"{np.exp(ratios[index]):.3g} (gradient {norms[index]:.3g})"
        words[first + index] = (words[first + index][0], colour, title)
    mean = record["loss"] / record["num_queries"]
    title = f"{record['document']}: KL {mean:.3f} nats per token over {record['num_queries']} queries\n\n"
    return [(title, "transparent", ""), *words[start:]]


def _shares(summary: dict[str, Any], length: int, window: WindowSpec) -> Section:
    lead = (
        "The norm of what a layer's memory adds, over the norm of what its attention to sinks and window gives; mean "
        f"over {summary['num_texts']} texts by the distance past W = {window.lossless_budget}."
    )
    picture = Picture(
        plot_shares(summary["shares"], bin_width(length, window)),
        "Share of the memory in each layer's output by distance past the lossless budget",
    )
    return Section("How loud each layer's memory is", lead, pictures=[picture])


def _layers(layers: dict[str, Any]) -> Section:
    silent = layers["silent"]
    lead = (
        f"KL to full attention, per token past the window ({layers['tokens']:,} tokens): {layers['intact']:.4f} nats "
        f"with all memories, {silent['kl']:.4f} with none. Above zero in the picture, a layer's memory helps."
    )
    rows = [["all memories", f"{layers['intact']:.5f}", "", ""], _row("no memory", silent)]
    rows += [_row(f"without layer {row['layer']}'s", row) for row in layers["without"]]
    table = Table(["memories", "KL (nats)", "added", "95 % interval"], rows, "Every layer", is_folded=True)
    picture = Picture(plot_effects(layers), "KL that zeroing each layer's memory adds")
    note = f"Intervals: 95 %, paired bootstrap over {layers.get('texts', 'the')} texts."
    return Section("Which layers' memories matter", lead, tables=[table], pictures=[picture], note=note)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    return [name, f"{row['kl']:.5f}", f"{row['effect']:+.5f}", _interval(row["effect_ci95"], "+.5f")]


def _interval(bounds: Sequence[float] | None, style: str) -> str:
    return "not defined" if bounds is None else f"{bounds[0]:{style}} to {bounds[1]:{style}}"
