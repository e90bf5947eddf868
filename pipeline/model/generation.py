"""Reading a long text into a cache."""

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.model.augment import window_of
from pipeline.model.cache import HippocampusCache


@torch.no_grad()
def absorb(model: PreTrainedModel, input_ids: Tensor, prefill_chunk: int) -> HippocampusCache:
    """Reads `input_ids` [B, T] without computing a logit; memory does not depend on T.

    Args:
        model: an AHN model.
        input_ids: unpadded tokens.
        prefill_chunk: tokens at a time.
    """
    cache = HippocampusCache(model.config, window_of(model.config))
    with tqdm(total=input_ids.shape[1], unit="token", desc="absorb", delay=5) as progress:
        for part in input_ids.split(prefill_chunk, dim=1):
            model.get_decoder()(input_ids=part, past_key_values=cache, use_cache=True)
            progress.update(part.shape[1])
    return cache
