"""A memory that retains M tokens a key-value head: its scores over the grid, beside M other tokens, and its bytes."""

from pathlib import Path

import torch

from pipeline.config import RecallStudyConfig
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.recall.scoring import (
    GridPoint,
    score_foreign_state,
    score_memory,
    score_memory_off,
    score_variant,
)
from pipeline.evaluation.recall.summary import LayerBytes, RetainedScores
from pipeline.evaluation.variant_bytes import count_bytes
from pipeline.model.decoder import window_of
from pipeline.model.loading import load_model

BF16_BYTES = 2


def score_retaining_adapter(
    adapter: Path, config: RecallStudyConfig, points: list[GridPoint], seed: int
) -> list[RetainedScores]:
    """Scores a trained memory that retains tokens, and its controls, at every point, on the documents of `seed`."""
    model = load_model(str(adapter), dtype=torch.float32).eval()
    num_retained, scores = window_of(model.config).num_retained_tokens, []
    for point in points:
        documents = point.documents(config.task, config.questions, seed)
        others = {
            kind: score_variant(model, documents, f"{kind}{num_retained}", seed)
            for kind in ("retained", "wider", "random")
        }
        own = score_memory(model, documents), score_memory_off(model, documents)
        scores.append(RetainedScores(*own, score_foreign_state(model, documents), **others))
    return scores


def count_layer_bytes(adapter: Path) -> LayerBytes:
    """What a layer keeps of one document, in float32, once tokens have been dropped."""
    model = load_model(str(adapter), dtype=torch.float32)
    window = window_of(model.config)
    alone, beside = (
        count_bytes(Reader(model, variant, window.without_retained, 1, 1.0, window.decision_interval))
        for variant in ("ahn", f"retained{window.num_retained_tokens}_ahn")
    )
    key_value_bytes = beside.lossless_bytes - alone.lossless_bytes
    return LayerBytes(
        retained=key_value_bytes + beside.side_bytes - alone.side_bytes,
        retained_bf16=key_value_bytes * BF16_BYTES // model.dtype.itemsize,
        state=beside.state_bytes,
    )
