"""Packed samples -> one micro-batch for the model: a single row of documents, no padding.

Each sample brings its drawn window; documents never see each other (Document bounds say so), so samples are simply
laid end to end. The teacher reads the same row with full attention, or its signals come from a cache.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from pipeline.attention.window import Document, WindowSpec
from pipeline.data.shard_format import PackedSample
from pipeline.losses.positions import supervised_positions
from pipeline.teacher.signals import Signal, concatenate_signals


@dataclass(frozen=True)
class DrawnSample:
    """A sample in its place of the global order, with its window (None: nothing of it is supervised).

    `signal`: the teacher's, of `positions`, where it comes from a cache.
    """

    global_index: int
    sample: PackedSample
    window: WindowSpec | None
    signal: Signal | None = None

    @cached_property
    def positions(self) -> np.ndarray:
        """Supervised positions within the sample, int64 [m]."""
        if self.window is None:
            return np.empty(0, np.int64)
        return supervised_positions(self.sample.cu_seqlens, self.window.lossless_budget, self.sample.loss_mask)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of N tokens with M supervised hidden states.

    `input_ids` and `position_ids` (from 0 in each document): int64 [1, N]. `positions`: int64 [M], indices into the
    row; the hidden state at p predicts token p + 1. `targets`: int64 [M], that token. `sample_of_position`: int64 [M]
    (numpy), index into `samples`. `num_tokens` counts the samples' tokens. `signal`: the teacher's at the M positions,
    or None where any of them has none and the teacher must run.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    documents: tuple[Document, ...]
    positions: torch.Tensor
    targets: torch.Tensor
    sample_of_position: np.ndarray
    samples: tuple[DrawnSample, ...]
    num_tokens: int
    signal: Signal | None = None

    @property
    def num_supervised_samples(self) -> int:
        return len(np.unique(self.sample_of_position))

    @property
    def num_cached_samples(self) -> int:
        """Supervised samples for which the teacher need not run."""
        return 0 if self.signal is None else self.num_supervised_samples

    @property
    def teacher_documents(self) -> tuple[Document, ...]:
        """The same documents under full attention, memory off."""
        return tuple(replace(document, window=None) for document in self.documents)

    @property
    def student_documents(self) -> tuple[Document, ...]:
        """The documents with supervised positions; the stand-in's own where there are none."""
        if len(self.positions) == 0:
            return self.documents
        starts = torch.tensor([d.start for d in self.documents])
        owners = torch.searchsorted(starts, self.positions.cpu(), right=True).sub(1).unique()
        return tuple(self.documents[i] for i in owners.tolist())

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        moved = {n: getattr(self, n).to(device) for n in ("input_ids", "position_ids", "positions", "targets")}
        return replace(self, **moved)


def collate(samples: Sequence[DrawnSample]) -> Batch:
    """Lays samples end to end.

    A batch without any supervised position becomes a stand-in of two tokens whose second one reads a memory of the
    first: forward and backward still pass through every module, with a zero loss, so that this rank's collectives
    match those of ranks that have work, and cost next to nothing.
    """
    token_rows, documents, positions, owners, start = [], [], [], [], 0
    for number, drawn in enumerate(samples):
        sample, bounds = drawn.sample, drawn.sample.cu_seqlens
        token_rows.append(sample.input_ids.astype(np.int64))
        documents += [Document(0, start + int(a), start + int(b), drawn.window) for a, b in itertools.pairwise(bounds)]
        positions.append(drawn.positions + start)
        owners.append(np.full(len(drawn.positions), number, np.int64))
        start += len(sample.input_ids)
    num_tokens = start
    tokens = np.concatenate(token_rows)
    flat_positions = np.concatenate([np.empty(0, np.int64), *positions])
    if len(flat_positions) == 0:
        tokens, documents = np.zeros(2, np.int64), [Document(0, 0, 2, WindowSpec(0, 1))]
    position_ids = np.concatenate([np.arange(d.length) for d in documents])
    return Batch(
        input_ids=torch.from_numpy(tokens)[None],
        position_ids=torch.from_numpy(position_ids)[None],
        documents=tuple(documents),
        positions=torch.from_numpy(flat_positions),
        targets=torch.from_numpy(tokens[flat_positions + 1]),
        sample_of_position=np.concatenate([np.empty(0, np.int64), *owners]),
        samples=tuple(replace(drawn, signal=None) for drawn in samples),  # the joined one is enough memory
        num_tokens=num_tokens,
        signal=_join_signals([drawn.signal for drawn in samples if len(drawn.positions)]),
    )


def _join_signals(signals: Sequence[Signal | None]) -> Signal | None:
    if not signals or any(signal is None for signal in signals):
        return None
    return signals[0] if len(signals) == 1 else concatenate_signals(signals)
