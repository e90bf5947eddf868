"""Which tokens of a text are retained at its end, by how many key-value heads, as numbers and as coloured text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.evaluation.probing.token_classes import CLASSES, NOT_PROBED, classify, words_of
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import Record, Section, Table
from pipeline.evaluation.variant_style import colour_of, label
from pipeline.model.retained_cache import RetainedLayer

MAX_WORDS = 1500
ColouredWord = tuple[str, str, str]


def find_retained(reader: Reader, ids: Tensor) -> Record:
    """What a variant that retains tokens keeps, once it has read a text.

    Args:
        reader: of the variant.
        ids: int64 [N], more than sinks + window.

    Returns:
        `variant`, `ids` [N], the `first` token that may be retained, and of it and those behind it that have left the
        window `heads` [E], how many key-value heads of all layers (`num_heads`) keep it, and `middle` [E], how many
        (of `num_middle`) of the `layer` in the middle of those with full attention.
    """
    cache = reader.new_cache()
    reader.read(ids, cache)
    first, end = reader.kept.num_sink_tokens, len(ids) - reader.kept.window_size
    layers = {n: layer for n, layer in enumerate(cache.layers) if isinstance(layer, RetainedLayer)}
    counts = {n: _count(layer.facts["position"], len(ids)) for n, layer in layers.items()}
    number = list(layers)[len(layers) // 2]
    num_middle = layers[number].keys.shape[1]
    return {
        "variant": reader.variant,
        "ids": ids.tolist(),
        "first": first,
        "heads": sum(counts.values())[first:end].tolist(),
        "num_heads": num_middle * len(layers),
        "middle": counts[number][first:end].tolist(),
        "num_middle": num_middle,
        "layer": number,
    }


def _count(positions: Tensor, num_tokens: int) -> Tensor:
    """How often each position occurs, int64 [N] on the CPU; slots without a token have a negative one."""
    return torch.bincount(positions[positions >= 0], minlength=num_tokens).cpu()


def summarise_retained(record: Record, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`classes`: of each kind of token how many have left the window, and the `share` of heads that keep one, on
    average."""
    sums = {name: [0, 0.0] for name in CLASSES}
    left = record["ids"][record["first"] :]
    for token, heads in zip(left, record["heads"], strict=False):
        of_class = sums[classify(tokenizer, token)]
        of_class[0] += 1
        of_class[1] += heads / record["num_heads"]
    classes = [{"class": n, "tokens": count, "share": total / count} for n, (count, total) in sums.items() if count]
    return {"variant": record["variant"], "document": record["document"], "classes": classes}


def make_retained_section(summary: dict[str, Any], record: Record, tokenizer: PreTrainedTokenizerBase) -> Section:
    """The text, coloured, and the share of each kind of token."""
    name = label(record["variant"])
    lead = (
        f"{name}: of the tokens that have left the window at a text's end, those that are kept as they are, each the "
        f"darker the more of the {record['num_heads']} key-value heads keep it. A token's title has its numbers, and "
        f"those of layer {record['layer']}, the middle one."
    )
    rows = [[row["class"], f"{row['tokens']:,}", f"{row['share']:.1%}"] for row in summary["classes"]]
    table = Table(["tokens", "count", "heads that keep one"], rows)
    note = "Sinks and the tokens of the window, which every head sees, are grey."
    texts = [_legend(record["variant"]), _coloured(record, tokenizer)]
    return Section("Which evicted tokens are retained", lead, tables=[table], texts=texts, note=note)


def _legend(variant: str) -> Sequence[ColouredWord]:
    steps = [(f" {share:.0%} ", shade(variant, share), "") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return [*steps, ("  ", "transparent", ""), (" grey ", NOT_PROBED, "")]


def _coloured(record: Record, tokenizer: PreTrainedTokenizerBase) -> Sequence[ColouredWord]:
    """The last MAX_WORDS tokens of the text."""
    words = [(word, NOT_PROBED, "") for word in words_of(tokenizer, record["ids"])]
    for index, (heads, middle) in enumerate(zip(record["heads"], record["middle"], strict=True), record["first"]):
        title = f"{heads} of {record['num_heads']} heads; {middle} of {record['num_middle']} in layer {record['layer']}"
        words[index] = words[index][0], shade(record["variant"], heads / record["num_heads"]), title
    return [(f"{record['document']}\n\n", "transparent", ""), *words[-MAX_WORDS:]]


def shade(variant: str, share: float) -> str:
    """From white, for 0, half way to the variant's colour, on which black text can be read."""
    colour = colour_of(variant)
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (x - 255) * 0.5 * share):02x}" for x in channels)
