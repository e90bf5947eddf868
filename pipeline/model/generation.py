"""Reading a long text into a cache, and what decides about the tokens that follow."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from pipeline.model.cache import HippocampusCache
from pipeline.model.decoder import window_of


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


_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ABOUT_THE_FILE = ("transformers_version", "_from_model_config", "max_length", "max_new_tokens", "use_cache")


def decide_generation(model: PreTrainedModel, temperature: float, top_p: float) -> dict[str, Any]:
    """Makes `model.generate` greedy (temperature 0) or sample as asked, whatever the base's generation_config says.

    Of that file only the ids of special tokens stay in force.

    Returns:
        What else it asks for, and is not done.
    """
    theirs = model.generation_config
    is_greedy = temperature == 0
    sampling = {} if is_greedy else {"temperature": temperature, "top_p": top_p, "top_k": 0}  # 0: no bound
    ours = GenerationConfig(do_sample=not is_greedy, use_cache=True, num_beams=1, **sampling)
    for name in _TOKEN_IDS:
        setattr(ours, name, getattr(theirs, name))
    usual = GenerationConfig._get_default_generation_params()
    model.generation_config = ours
    return {
        name: value
        for name, value in theirs.to_diff_dict().items()
        if name not in (*_TOKEN_IDS, *_ABOUT_THE_FILE)
        and value not in (None, False, usual.get(name), getattr(ours, name, None))
    }
