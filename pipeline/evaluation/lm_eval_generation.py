"""Looks at --gen_kwargs before a model is loaded: a tiny one generates with them."""

from typing import Any

import numpy as np
import torch
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_model import HippocampusLM
from pipeline.evaluation.shared_prefix import new_cache

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one setting
KNOWN = (
    *("until", *LIMITS, "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "num_beams", "early_stopping", "length_penalty"),
    *("min_new_tokens", "min_length", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("exponential_decay_length_penalty", "renormalize_logits", "remove_invalid_values", "max_time", "eos_token_id"),
)
_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_generation(gen_kwargs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        UserError: one is unknown here, or its value is none that transformers generates with.
    """
    for name, value in gen_kwargs.items():
        if name not in KNOWN:
            raise UserError(f"--gen_kwargs {name}={value}: must be one of {', '.join(KNOWN)}")
        if name in (*LIMITS, "num_beams") and (type(value) is not int or value < 1):
            raise UserError(f"--gen_kwargs {name}={value}: must be a whole number >= 1")
        if name == "temperature" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise UserError(f"--gen_kwargs temperature={value}: must be a number >= 0; 0 is greedy")
    if gen_kwargs:
        _rehearse(gen_kwargs, tokenizer)


def _rehearse(gen_kwargs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        tiny = HippocampusLM(LlamaForCausalLM(config).eval(), tokenizer, prefill_chunk=4)
        try:
            settings = {"until": []} | normalize_gen_kwargs(dict.fromkeys(LIMITS) | gen_kwargs) | {"max_gen_toks": 2}
            tiny.generate_prompt(np.zeros(4, np.int32), new_cache(tiny.model), settings)
        except _ERRORS as error:
            given = ",".join(f"{name}={value}" for name, value in gen_kwargs.items())
            raise UserError(f"--gen_kwargs {given}: cannot be used ({' '.join(str(error).split())})") from error
