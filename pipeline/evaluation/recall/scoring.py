"""How many questions a model answers: with full attention, sinks + window, its memory, and controls of it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import RecallTaskConfig, Variant, parse_variant
from pipeline.errors import UserError
from pipeline.evaluation.recall.documents import RecallDocuments, count_fillers, make_documents
from pipeline.evaluation.variant_caches import make_cache
from pipeline.evaluation.variant_windows import variant_window
from pipeline.model.cache import HippocampusCache
from pipeline.model.decoder import window_of
from pipeline.model.retained_cache import RetainedLayer

LEAST_FULL, MOST_WINDOW = 0.95, 0.10


@dataclass(frozen=True)
class GridPoint:
    """Facts in a document, and windows of filler between them and the questions."""

    facts: int
    distance: int

    def documents(self, task: RecallTaskConfig, questions: int, seed: int) -> RecallDocuments:
        """Documents with at least `questions` questions in all, the same for equal arguments."""
        generator = np.random.default_rng([seed, self.facts, self.distance])
        count = -(-questions // self.facts)
        # Two at least: the foreign-state control needs another document.
        return make_documents(task, max(2, count), self.facts, count_fillers(task, self.distance), generator)


def score_full(model: PreTrainedModel, documents: RecallDocuments) -> float:
    """Share of right answers with full attention, no memory."""
    return _score_forward(model, documents, window=None)


def score_memory_off(model: PreTrainedModel, documents: RecallDocuments) -> float:
    """Share of right answers with sinks and window, the memory and what it retains left out."""
    return _score_forward(model, documents, window=window_of(model.config).without_retained, use_memory=False)


def score_memory(model: PreTrainedModel, documents: RecallDocuments) -> float:
    """Share of right answers with sinks, window and memory, which may retain tokens; with a memory never trained,
    sinks + window."""
    return _score_forward(model, documents, window=window_of(model.config))


@torch.no_grad()
def score_variant(model: PreTrainedModel, documents: RecallDocuments, variant: Variant, seed: int) -> float:
    """Share of right answers under a variant of evaluation/reader.py other than `full_yarn` and `oracle`; sinks, window
    and decision interval are the model's, `seed` is of `random`."""
    ids, window = torch.from_numpy(documents.input_ids), window_of(model.config)
    spec = parse_variant(variant)
    kept = variant_window(spec, window.without_retained, window.decision_interval)
    logits = model(ids, past_key_values=make_cache(model, spec, kept, seed)).logits
    return _share_right(logits[:, documents.questions], documents)


@torch.no_grad()
def score_foreign_state(model: PreTrainedModel, documents: RecallDocuments) -> float:
    """Share of right answers when, before the first question, each document gets the memory of the one before it: its
    cell's state, and the tokens that it retains or has yet to decide on."""
    ids, first = torch.from_numpy(documents.input_ids), int(documents.questions[0])
    cache = HippocampusCache(model.config, window_of(model.config))
    model(ids[:, :first], past_key_values=cache, logits_to_keep=1)
    for layer in cache.layers:
        if isinstance(layer, RetainedLayer):
            roll_retained(layer)
        if layer.state is not None:  # all that left the window may be retained
            layer.state = layer.state.roll(1, 0)
    logits = model(ids[:, first:], past_key_values=cache).logits
    return _share_right(logits[:, documents.questions - first], documents)


def roll_retained(layer: RetainedLayer) -> None:
    """Gives each row what the one before it keeps between sinks and window; rows have seen as many tokens."""
    table, window = layer.in_order(), layer.window
    num_held = table["keys"].shape[2] - window.num_sink_tokens - window.window_size
    parts = [window.num_sink_tokens, num_held, window.window_size]
    rolled = {}
    for name, x in table.items():
        sinks, held, recent = x.split(parts, 2)
        rolled[name] = torch.cat([sinks, held.roll(1, 0), recent], 2)
    layer.set_table(rolled)


def check_base(full: float, window: float, point: GridPoint, name: str) -> None:
    """Accepts a base at one point of the grid.

    Raises:
        UserError: full attention does not answer, or the window does without the facts.
    """
    if full < LEAST_FULL or window > MOST_WINDOW:
        raise UserError(
            f"base {name}: with {point.facts} facts, {point.distance} windows away, full attention answers {full:.1%} "
            f"and sinks + window {window:.1%}; the study needs >= {LEAST_FULL:.0%} and <= {MOST_WINDOW:.0%}: train "
            f"another (--base.seed), or up to these documents (--base.max_facts, --base.max_distance)"
        )


@torch.no_grad()
def _score_forward(
    model: PreTrainedModel, documents: RecallDocuments, *, window: WindowSpec | None, use_memory: bool = True
) -> float:
    count, length = documents.input_ids.shape
    scopes = [Document(row, 0, length, window) for row in range(count)]
    logits = model(torch.from_numpy(documents.input_ids), documents=scopes, use_memory=use_memory).logits
    return _share_right(logits[:, documents.questions], documents)


def _share_right(logits: Tensor, documents: RecallDocuments) -> float:
    return float((logits.argmax(-1).numpy() == documents.answers).mean())
