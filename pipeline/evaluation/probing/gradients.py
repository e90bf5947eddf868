"""Which evicted tokens a text's end depends on, by the gradient of the distillation loss (arXiv 2510.07318).

Of a text of N tokens, with S sinks, a window of R and t0 = max(S + R, N - 1 - R), the last R queries that predict give

    L = sum over supervised t >= t0 of KL(p_full(. | x_0 .. x_t) || p_AHN(. | x_0 .. x_t)),     g_j = | dL / d e_j |_2

with e_j what the AHN model reads of token j, its input embedding; the distributions of full attention are constants.
Tokens S <= j <= t0 - R are those that none of these queries attends to. A small g_j says that changing what the model
reads of token j would bring it no nearer to full attention. The paper takes such a token for one that the memory keeps;
it may as well be one that is not asked for, or that never got into the memory, for then no gradient comes back through
it either. A large one says that the memory tells too little of the token, or tells it wrongly. And the queries reach
such tokens without any memory too, through the windows of the layers below, and those gradients, h_j, differ from token
to token much alike: see ratios.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.probing.passes import embed, read_whole, recomputed_layers
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.model.output_head import find_output_head


@dataclass(frozen=True)
class TokenGradients:
    """`norms`: g_j of the tokens from `first` on, float [E >= 1] on the CPU; `without_memory`: h_j, the same with all
    memories left out; `loss`: L with memories, over `num_queries`, in nats."""

    first: int
    norms: Tensor
    without_memory: Tensor
    loss: float
    num_queries: int


def token_gradients(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, window: WindowSpec, chunk_size: int
) -> TokenGradients:
    """Three forwards and two backward passes over one text; the parameters get no gradient.

    Args:
        model: an AHN model in eval mode.
        ids: int64 [N], N >= S + R + 2.
        positions: supervised ones int64 [M], at least one of them from t0 on.
        window: S and R.
        chunk_size: positions whose logits exist at one time.
    """
    first_query = max(window.lossless_budget, len(ids) - 1 - window.window_size)
    queries = positions[positions >= first_query]
    evicted = slice(window.num_sink_tokens, first_query - window.window_size + 1)
    head, embeddings = find_output_head(model), embed(model, ids)
    with torch.no_grad():
        full = read_whole(model, embeddings, None)[queries]
    weights = torch.ones(len(queries), dtype=torch.promote_types(full.dtype, torch.float32), device=ids.device)
    embeddings.requires_grad_()

    def backward(use_memory: bool) -> tuple[Tensor, float]:
        with torch.enable_grad(), recomputed_layers(model):
            student = read_whole(model, embeddings, window, use_memory=use_memory)[queries]
            loss = chunked_forward_kl(student, full, head, weights, chunk_size)
            (gradient,) = torch.autograd.grad(loss, embeddings)
        return torch.linalg.vector_norm(gradient[evicted].to(weights.dtype), dim=-1).cpu(), loss.item()

    norms, loss = backward(use_memory=True)
    without_memory, _ = backward(use_memory=False)
    return TokenGradients(evicted.start, norms, without_memory, loss, len(queries))
