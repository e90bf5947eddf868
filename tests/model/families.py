"""Tiny bases of families that do more than the verified four: after lm_head, or in training."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.model.conftest import SIZES

MLA = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
# What stands between the last hidden state and the logits; each changes them by more than 1e-2.
HEADS = {
    "granite": {"logits_scaling": 6.0},
    "cohere": {"logit_scale": 0.3},
    "hyperclovax": {"logits_scaling": 0.7},
    "minicpm3": {**MLA, "num_key_value_heads": 4, "dim_model_base": 24},  # divides the hidden state
    "phi": {"partial_rotary_factor": 0.5},  # a bias
    "nanochat": {"final_logit_softcapping": 2.0},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 3.0},
}
# What draws in training.
DRAWS = {
    "llama": {"attention_dropout": 0.3},
    "seed_oss": {"head_dim": 16, "residual_dropout": 0.3},
    "phi": {"partial_rotary_factor": 0.5, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
    "phimoe": {**MOE, "router_jitter_noise": 0.2, "input_jitter_noise": 0.2},
    "mixtral": {**MOE, "router_jitter_noise": 0.3, "output_router_logits": True},
}


def make_model(family: str, **changes: object) -> PreTrainedModel:
    """Random weights, biases among them, far from uniform attention; in eval mode."""
    config = AutoConfig.for_model(family, **{**SIZES, "pad_token_id": None, **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.15)
    return model.eval()


def save_model(folder: Path, family: str, **changes: object) -> str:
    make_model(family, **changes).save_pretrained(folder)
    return str(folder)
