"""The teacher of the offline job: the base with full attention, which gives final hidden states at wanted positions.

Over whole samples the forward is that of the on-the-fly teacher (pipeline/teacher/online.py) with one sample as the
row: where shapes, threads and machine are the same, so is every bit.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from pipeline.config import TeacherCacheConfig
from pipeline.data.shard_format import PackedSample
from pipeline.losses.output_head import OutputHead
from pipeline.model.base_check import check_family
from pipeline.model.loading import load_config, load_model
from pipeline.model.output_head import check_output_head, find_output_head
from pipeline.model.supported import causal_lm_class, check_supported
from pipeline.teacher.document_attention import IMPLEMENTATION, AttentionRecorder, Piece, split_sample


class Teacher:
    """The base that training would load. Its weights are read by `load`.

    Args:
        config: of the job.
        device: where the forwards run.
    """

    head: OutputHead
    """In the base's dtype; there once loaded."""

    def __init__(self, config: TeacherCacheConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.is_loaded = False

    def load(self) -> None:
        """Reads the weights.

        Raises:
            UserError: the model cannot be loaded, or is of an unsupported kind.
        """
        model = load_teacher(self.config).to(self.device)
        self.head, self._decoder = find_output_head(model), model.get_decoder()
        self.is_loaded = True

    @torch.no_grad()
    def compute_hidden(self, sample: PackedSample, positions: np.ndarray) -> Tensor:
        """Final normed hidden states [M, D] at `positions` (int [M], rising, counted within the sample), in the base's
        dtype.

        A sample without positions costs no forward.
        """
        if len(positions) == 0:
            return self.head.weight.new_empty(0, self.head.weight.shape[1])
        tokens = torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(self.device)
        found, past = [], None
        for piece in split_sample(sample.cu_seqlens.tolist(), self.config.forward_chunk):
            if piece.num_before == 0:
                past = DynamicCache() if piece.end < piece.bounds[-1] else None  # without a config: full attention
            hidden = self._forward(tokens[:, piece.start : piece.end], piece, past)
            wanted = positions[np.searchsorted(positions, piece.start) : np.searchsorted(positions, piece.end)]
            found.append(hidden[torch.from_numpy(wanted.astype(np.int64) - piece.start).to(self.device)])
        return torch.cat(found)

    @torch.no_grad()
    def show(self, sample: PackedSample, recorder: AttentionRecorder) -> None:
        """A forward of the whole sample, whose attention `recorder` sees."""
        tokens = torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(self.device)
        (piece,) = split_sample(sample.cu_seqlens.tolist(), None)
        position_ids, documents = piece.position_ids(self.device), piece.documents
        self._decoder(
            input_ids=tokens, position_ids=position_ids, use_cache=False, documents=documents, record=recorder
        )

    def _forward(self, tokens: Tensor, piece: Piece, past: DynamicCache | None) -> Tensor:
        """Hidden states [T, D] of the piece's tokens [1, T]; `past` gets their keys and values."""
        output = self._decoder(
            input_ids=tokens,
            attention_mask=piece.mask(self.device),
            position_ids=piece.position_ids(self.device),
            past_key_values=past,
            use_cache=past is not None,
            documents=piece.documents,
        )
        return output.last_hidden_state[0]

    def finish(self, show_progress: Callable[[], None]) -> None:
        """To be called when there is no work left for this process; calls `show_progress` while others need it."""


def check_teacher(model: str, check_base: bool = True) -> None:
    """Refuses what is no base of an AHN model, without its weights.

    Args:
        model: folder or hub id.
        check_base: whether to run a small copy of it (pipeline/model/base_check.py).

    Raises:
        UserError: no such model, or one that cannot be augmented.
    """
    config = load_config(model)
    with torch.device("meta"):
        base = causal_lm_class(type(config))(config)
    check_supported(base, base.get_decoder(), config)
    find_output_head(base)
    if check_base:
        check_family(config)


def load_teacher(config: TeacherCacheConfig) -> nn.Module:
    """The base in --base_dtype, its attention told by `documents`, a list of (start, end).

    Raises:
        UserError: the model cannot be loaded, or its logits cannot be reproduced.
    """
    model = load_model(config.model, dtype=getattr(torch, config.base_dtype)).eval()
    check_output_head(model)
    model.set_attn_implementation(IMPLEMENTATION)
    return model
