"""The scores of `oracle*`: what a text's later queries will read. Nothing that reads a text as it comes can know it."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.attention.later_mass import mean_later_mass
from pipeline.attention.window import Document, WindowSpec


class _LaterMasses:
    """Takes the place of a forward's `record`."""

    def __init__(self, window_size: int) -> None:
        self.of_layers: dict[int, Tensor] = {}
        self._window_size = window_size

    def record(self, layer: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> None:
        """As PrefixStore's."""
        self.of_layers[layer] = mean_later_mass(query, key, self._window_size, scale=scale)[0]


@torch.no_grad()
def later_mass_scores(model: PreTrainedModel, ids: Tensor, window: WindowSpec) -> dict[int, Tensor]:
    """For each layer the mass that the queries which no longer have a token in their window give it under full
    attention, on average, float32 [Hkv, N].

    Args:
        model: an AHN model in eval mode.
        ids: int64 [N], the whole text, on the model's device.
        window: sinks and window.
    """
    masses = _LaterMasses(window.window_size)
    model.get_decoder()(
        input_ids=ids[None],
        position_ids=torch.arange(len(ids), device=ids.device)[None],
        use_cache=False,
        documents=(Document(0, 0, len(ids), None),),
        use_memory=False,
        record=masses,
    )
    return masses.of_layers
