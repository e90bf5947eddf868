"""One piece of text under full attention, sinks + window, and sinks + window + AHN."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.attention.window import Document, WindowSpec
from pipeline.losses.chunked_kl import score_positions


@dataclass(frozen=True)
class PieceScores:
    """Float32 [M] on the CPU, one value a scored position, in nats. KL is KL(full || variant)."""

    kl_window: Tensor
    kl_ahn: Tensor
    nll_full: Tensor
    nll_window: Tensor
    nll_ahn: Tensor


@torch.no_grad()
def score_piece(
    model: PreTrainedModel, input_ids: Tensor, positions: Tensor, window: WindowSpec, chunk_size: int
) -> PieceScores:
    """Three passes over one text.

    Args:
        model: an AHN model in eval mode.
        input_ids: int64 [N] on the model's device.
        positions: int64 [M] in [0, N - 1); the hidden state at t predicts token t + 1.
        window: what attention keeps in the two variants.
        chunk_size: positions whose logits exist at one time.
    """
    head = model.get_output_embeddings().weight
    targets = input_ids[positions + 1]

    def hidden_states(document_window: WindowSpec | None, use_memory: bool) -> Tensor:
        output = model.get_decoder()(
            input_ids=input_ids[None],
            position_ids=torch.arange(len(input_ids), device=input_ids.device)[None],
            use_cache=False,
            documents=(Document(0, 0, len(input_ids), document_window),),
            use_memory=use_memory,
        )
        return output.last_hidden_state[0, positions]

    full = hidden_states(None, use_memory=False)
    sinks_and_window = hidden_states(window, use_memory=False)
    ahn = hidden_states(window, use_memory=True)
    plain = score_positions(sinks_and_window, full, targets, head, chunk_size)
    compressed = score_positions(ahn, full, targets, head, chunk_size)
    values = (plain.kl, compressed.kl, plain.teacher_nll, plain.student_nll, compressed.student_nll)
    return PieceScores(*(value.float().cpu() for value in values))
