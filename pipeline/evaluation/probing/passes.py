"""Whole forwards of one text, without a cache: with gradients, and with parts of the memory taken out."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.attention.window import Document, WindowSpec


def read_whole(
    model: PreTrainedModel, embeddings: Tensor, window: WindowSpec | None, *, use_memory: bool = True
) -> Tensor:
    """Final normed hidden states [N, hidden] of one text.

    Args:
        model: an AHN model in eval mode.
        embeddings: its input embeddings of the text [N, hidden].
        window: what attention keeps; None: full attention, no memory.
        use_memory: False leaves all memories out.
    """
    output = model.get_decoder()(
        inputs_embeds=embeddings[None],
        position_ids=torch.arange(len(embeddings), device=embeddings.device)[None],
        use_cache=False,
        documents=(Document(0, 0, len(embeddings), window),),
        use_memory=use_memory and window is not None,
    )
    return output.last_hidden_state[0]


@torch.no_grad()
def embed(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Input embeddings [N, hidden] of a text int64 [N]."""
    return model.get_input_embeddings()(ids)


@contextmanager
def zeroed_memories(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[None]:
    """What the memories of these layers give is exactly zero; they go on absorbing."""
    with ExitStack() as hooks:
        for index in layers:
            memory = model.get_decoder().layers[index].ahn.fn
            hooks.enter_context(memory.register_forward_hook(_zeros))
        yield


def _zeros(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


@contextmanager
def recomputed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Layers keep their input alone for the backward pass, and compute again what else it needs."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
