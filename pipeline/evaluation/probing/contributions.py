"""How much of what each layer's attention gives comes from its memory, and what the model loses without it."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.evaluation.probing.passes import embed, read_whole, zeroed_memories
from pipeline.losses.chunked_kl import score_positions
from pipeline.model.augment import memory_layers
from pipeline.model.output_head import find_output_head

Shares = dict[int, Tensor]


@torch.no_grad()
def memory_shares(model: PreTrainedModel, ids: Tensor, window: WindowSpec) -> Tensor:
    """|memory read| / |attention output| of each layer with a memory, before o_proj, over all heads: [layers, N - W].

    Column i is the query at position W + i, the (i + 1)-th that reads the memory. Both norms are of a token's vector
    [Hq * D]; the attention output is that of sinks + window.
    """
    shares: Shares = {}
    with ExitStack() as hooks:
        for index, layer in memory_layers(model).items():
            reads: list[Tensor] = []
            hooks.enter_context(layer.ahn.fn.register_forward_hook(partial(_keep_read, reads)))
            divide = partial(_divide, reads, shares, index)
            hooks.enter_context(_output_projection(layer.self_attn).register_forward_pre_hook(divide))
        read_whole(model, embed(model, ids), window)
    return torch.stack([shares[index] for index in memory_layers(model)])


def _output_projection(attention: nn.Module) -> nn.Module:
    """What follows the heads' outputs; families name it differently."""
    for name in ("o_proj", "out_proj", "dense"):
        if hasattr(attention, name):
            return getattr(attention, name)
    raise UserError(f"--suites probing: {type(attention).__name__} has no output projection of a known name")


def _keep_read(reads: list[Tensor], _module: nn.Module, _args: tuple, output: Tensor) -> None:
    reads.append(output)


def _divide(reads: list[Tensor], shares: Shares, index: int, _module: nn.Module, args: tuple[Tensor]) -> None:
    read, attended = reads.pop().flatten(2), args[0]
    read = read.to(attended.dtype).to(torch.promote_types(attended.dtype, torch.float32))
    attention = attended[:, -read.shape[1] :] - read
    shares[index] = (read.norm(dim=-1) / attention.norm(dim=-1))[0]


@torch.no_grad()
def kl_without(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    window: WindowSpec,
    layer_sets: Iterable[Iterable[int]],
    chunk_size: int,
) -> list[float]:
    """Sum over `positions` of KL(full || AHN without the memories of these layers), in nats, for each set of layers.

    Args:
        model: an AHN model in eval mode.
        ids: int64 [N].
        positions: int64 [M] in [0, N - 1).
        window: what attention keeps.
        layer_sets: one pass each.
        chunk_size: positions whose logits exist at one time.
    """
    head, embeddings, targets = find_output_head(model), embed(model, ids), ids[positions + 1]
    full, sums = read_whole(model, embeddings, None)[positions], []
    for layers in layer_sets:
        with zeroed_memories(model, layers):
            student = read_whole(model, embeddings, window)[positions]
        sums.append(score_positions(student, full, targets, head, chunk_size).kl.double().sum().item())
    return sums
