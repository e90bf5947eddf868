"""Which pieces of a packed folder are scored.

Packing cuts a document that is longer than a sample, so what is scored is a *piece*: one document's tokens
inside one sample, read as a text of its own. Pieces too short to be evicted from are left out.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.data.loader import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.losses.positions import supervised_positions


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of sample `sample`: all or part of `document`.

    `positions` int64, 0-based in the piece: those whose prediction of the next token is scored.
    """

    sample: int
    start: int
    end: int
    document: str
    positions: np.ndarray

    @property
    def key(self) -> str:
        return f"{self.sample:08d}-{self.start:08d}"


def select_pieces(
    dataset: PackedDataset, lossless_budget: int, max_documents: int | None, pieces_per_document: int | None
) -> list[Piece]:
    """Pieces with at least one scored position, by document in the order of the folder.

    Args:
        dataset: packed held-out documents.
        lossless_budget: W; only tokens past it are scored.
        max_documents: the first so many documents; None takes all.
        pieces_per_document: the so many longest of each, the earlier first among equals; None takes all.

    Raises:
        DataError: nothing in the folder is long enough.
    """
    by_document: dict[str, list[Piece]] = {}
    longest = 0
    for number in range(len(dataset)):
        sample = dataset[number]
        longest = max(longest, sample.longest_document)
        bounds = sample.cu_seqlens.tolist()
        for document, start, end in zip(sample.meta["documents"], bounds, bounds[1:], strict=False):
            mask = None if sample.loss_mask is None else sample.loss_mask[start:end]
            positions = supervised_positions(np.array([0, end - start]), lossless_budget, mask)
            if len(positions):
                piece = Piece(number, start, end, document["id"], positions)
                by_document.setdefault(piece.document, []).append(piece)
    if not by_document:
        raise DataError(
            f"--data {dataset.folder}: no document is long enough: with W = {lossless_budget} one needs "
            f"{lossless_budget + 2} tokens, the longest has {longest}; choose a smaller --window_size or "
            f"prepare the data with a larger --seq_len"
        )
    chosen = list(by_document.values())[:max_documents]
    return [
        piece
        for pieces in chosen
        for piece in sorted(pieces, key=lambda p: (p.start - p.end, p.sample, p.start))[:pieces_per_document]
    ]
