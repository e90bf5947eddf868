"""The cache of an AHN model: one layer's cache a decoder layer, of constant size."""

import copy

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from pipeline.attention.window import WindowSpec
from pipeline.model.cache_layer import HippocampusLayer, MemoryMode
from pipeline.model.retained_cache import RetainedLayer
from pipeline.model.supported import sliding_windows


class HippocampusCache(Cache):
    """A `past_key_values` for AHN models; one `HippocampusLayer` a decoder layer.

    Layers in which the base itself has a sliding window keep that and nothing else.

    Args:
        config: the model's.
        window: of the layers with full attention.
        memory: what they do with their memories.
    """

    layers: list[HippocampusLayer]

    def __init__(self, config: PretrainedConfig, window: WindowSpec, memory: MemoryMode = "on") -> None:
        layers = [
            self.new_layer(window, memory) if sliding is None else HippocampusLayer(WindowSpec(0, sliding), "off")
            for sliding in sliding_windows(config)
        ]
        super().__init__(layers=layers)
        self.window = window

    def new_layer(self, window: WindowSpec, memory: MemoryMode) -> HippocampusLayer:
        """The cache of one layer with full attention."""
        return RetainedLayer(window, memory) if window.num_retained_tokens else HippocampusLayer(window, memory)

    def crop(self, tokens_to_remove: int) -> None:
        """As the layers' `crop`; where one of them cannot, none is changed."""
        if tokens_to_remove:
            for layer in self.layers:
                layer.check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def set_padding(self, attention_mask: Tensor | None, num_new: int) -> Tensor | None:
        """Notes each row's left padding from the mask [B, seen + new]; without a mask it stays what it was.

        Returns:
            The padding, int64 [B], or None for none.

        Raises:
            ValueError: a hole, right padding, or a mask of another width.
        """
        if attention_mask is None:
            return self.layers[0].padding
        mask, width = attention_mask.bool(), self.get_seq_length() + num_new
        if mask.shape[1] != width:
            raise ValueError(f"attention_mask covers {mask.shape[1]} tokens, the cache and the new ones are {width}")
        padding = None
        if not bool(mask.all()):
            padding = (mask.cumsum(-1) == 0).sum(-1)
            if not bool((mask.sum(-1) == width - padding).all()):
                raise ValueError("with a cache, attention_mask may hide left padding only: pad prompts on the left")
        for layer in self.layers:
            layer.set_padding(padding)
        return padding

    def padded_position_ids(self, padding: Tensor, num_new: int) -> Tensor:
        """position_ids [B, new] of the next columns of rows that are padded on the left; 0 for padding itself."""
        first = self.get_seq_length()
        return (torch.arange(first, first + num_new, device=padding.device) - padding[:, None]).clamp(min=0)

    def snapshot(self) -> "HippocampusCache":
        """A copy that later tokens do not change: absorb a document once, then ask each question from a copy."""
        return copy.deepcopy(self)

    def restore(self, snapshot: "HippocampusCache") -> None:
        """Goes back to a snapshot, which stays usable."""
        self.layers = snapshot.snapshot().layers

    def num_bytes(self) -> int:
        return sum(layer.num_bytes() for layer in self.layers)
