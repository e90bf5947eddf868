"""Suite `probing` in the report."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.probing.plots import plot_effects, plot_shares
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
        "norm of its gradient with respect to the token's input embedding. Green is small: what the token tells is in "
        "the memory, or is not asked for. Red is large: it is missing."
    )
    note = (
        "The loss is KL(full attention || AHN) summed over the last window's queries; colours go by the logarithm, "
        "from the 5th percentile of a text to the 95th; a token's title has its value. Sinks, and tokens which those "
        f"queries or the ones before them may still see, are grey. {len(shown)} of {summary['num_texts']} texts shown. "
        f"Gradients fall with the distance from those queries, so the table compares each token with the {NEIGHBOURS} "
        "on either side. Intervals: 95 %, paired bootstrap over texts."
    )
    rows = [
        [row["class"], f"{row['tokens']:,}", f"{row['mean_norm']:.3g}", f"{row['relative']:.2f}",
         _interval(row["relative_ci95"], ".2f")]
        for row in summary["classes"]
    ]  # fmt: skip
    table = Table(["tokens", "count", "mean gradient norm", "relative to neighbours", "95 % interval"], rows)
    return Section("Which evicted tokens the memory keeps", lead, tables=[table], texts=texts, note=note)


def _legend() -> list[ColouredWord]:
    steps = zip((" small ", "      ", " middle ", "      ", " large "), colours_of([1, 2, 4, 8, 16]), strict=True)
    return [*((word, colour, "") for word, colour in steps), ("  ", "transparent", ""), (" grey ", NOT_PROBED, "")]


def _coloured(record: Record, tokenizer: PreTrainedTokenizerBase) -> list[ColouredWord]:
    """The text's probed tokens and what stands around them, at most MAX_WORDS."""
    ids, first, norms = record["ids"], record["first"], record["norms"]
    end = min(len(ids), first + len(norms) + WORDS_AFTER)
    start = max(0, end - MAX_WORDS)
    words = [(word, NOT_PROBED, "") for word in words_of(tokenizer, ids[:end])]
    words[first : first + len(norms)] = [
        (word, colour, f"{norm:.3g}")
        for (word, *_), colour, norm in zip(words[first:], colours_of(norms), norms, strict=False)
    ]
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
    rows += [_row(f"without layer {index}'s", row) for index, row in enumerate(layers["without"])]
    table = Table(["memories", "KL (nats)", "added", "95 % interval"], rows, "Every layer", is_folded=True)
    picture = Picture(plot_effects(layers), "KL that zeroing each layer's memory adds")
    note = "Intervals: 95 %, paired bootstrap over texts."
    return Section("Which layers' memories matter", lead, tables=[table], pictures=[picture], note=note)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    return [name, f"{row['kl']:.5f}", f"{row['effect']:+.5f}", _interval(row["effect_ci95"], "+.5f")]


def _interval(bounds: Sequence[float] | None, style: str) -> str:
    return "not defined for one text" if bounds is None else f"{bounds[0]:{style}} to {bounds[1]:{style}}"
