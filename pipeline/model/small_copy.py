"""A small copy of a base: few layers, one of each kind, small matrices, random weights, everything else as it is.

What is particular about a family's attention stays (norms, rotary parts, biases, scales, layers without RoPE, experts),
and lengths at which something switches (sliding windows, chunks) become so short that a test of some twenty tokens is
past them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

SWITCH_LENGTH = 8
VOCAB_SIZE = 96
MAX_LAYERS = 6
HEAD_DIM = 16
_LARGEST_UNSHRUNK = 30_000_000  # parameters
_KEPT_OUT = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "ahn")


def small_config(config: PretrainedConfig, config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """The config of a small copy.

    Args:
        config: the base's, or its AHN model's.
        config_class: the base's.

    Raises:
        ValueError: it does not say how many layers there are; or what the family's own config class raises.
    """
    own_names = config_class.attribute_map  # standard name -> the family's, as n_layer
    standard_names = {own: name for name, own in own_names.items()}
    fields = {standard_names.get(n, n): value for n, value in config.to_dict().items() if n not in _KEPT_OUT}
    if not isinstance(fields.get("num_hidden_layers"), int):
        raise ValueError("its config has no num_hidden_layers")
    for shrink in (_shrink_lengths, _shrink_depth, _shrink_widths, _shrink_experts, _shrink_vocabulary):
        fields |= shrink(fields)
    return config_class(**{own_names.get(name, name): value for name, value in fields.items()})


def _shrink_lengths(fields: dict[str, Any]) -> dict[str, Any]:
    words = ("window", "chunk_size", "attention_chunk")
    return {
        name: min(value, SWITCH_LENGTH)
        for name, value in fields.items()
        if type(value) is int and any(word in name for word in words) and name != "max_window_layers"
    }


def _shrink_depth(fields: dict[str, Any]) -> dict[str, Any]:
    """The first layer of each kind, at least two layers; kinds are what the config's lists, one entry a layer, say."""
    depth = fields["num_hidden_layers"]
    lists = {name: v for name, v in fields.items() if isinstance(v, list) and len(v) == depth and depth > 2}
    first: dict[tuple[str, ...], int] = {}
    for index in range(depth):
        first.setdefault(tuple(str(values[index]) for values in lists.values()), index)
    chosen = sorted(first.values())[:MAX_LAYERS]
    chosen += [i for i in range(depth) if i not in chosen][: max(0, 2 - len(chosen))]
    changed: dict[str, Any] = {name: [values[i] for i in sorted(chosen)] for name, values in lists.items()}
    changed["num_hidden_layers"] = min(depth, len(chosen))
    for name in ("first_k_dense_replace", "max_window_layers", "num_dense_layers", "moe_layer_start_index"):
        if type(fields.get(name)) is int:
            changed[name] = min(fields[name], 1)
    if "layer_types" in changed and type(fields.get("max_window_layers")) is int:
        changed["max_window_layers"] = changed["num_hidden_layers"]
    return changed


def _shrink_widths(fields: dict[str, Any]) -> dict[str, Any]:
    """Two key-value heads and groups of two query heads, where the base has as many; heads of 16."""
    heads = fields.get("num_attention_heads")
    if not isinstance(heads, int):
        return {}
    kv_heads = fields.get("num_key_value_heads") or heads
    head_dim = fields.get("head_dim") or fields["hidden_size"] // heads
    new_kv = min(kv_heads, 2)
    new_heads = new_kv * min(heads // kv_heads, 2)
    new_dim = head_dim if _sections(fields) else min(head_dim, HEAD_DIM)
    width = new_heads * new_dim
    hidden = width if fields["hidden_size"] == heads * head_dim else 2 * width
    changed = {"num_attention_heads": new_heads, "hidden_size": hidden}
    if "num_key_value_heads" in fields:
        changed["num_key_value_heads"] = new_kv
    if "head_dim" in fields:
        changed["head_dim"] = new_dim
    for name, value in fields.items():
        if type(value) is int and ("intermediate" in name or name in ("ffn_dim", "ffn_hidden_size", "n_inner")):
            changed[name] = min(value, 2 * hidden)
    return changed


def _sections(fields: dict[str, Any]) -> bool:
    """Whether the rotary part is cut into sections whose sizes add up to a head's."""
    return "section" in str(fields.get("rope_parameters"))


def _shrink_experts(fields: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {"output_router_logits": False} if fields.get("output_router_logits") else {}
    for name, value in fields.items():
        if type(value) is not int:
            continue
        if name in ("num_experts_per_tok", "top_k", "moe_topk", "moe_k", "num_experts_per_token"):
            changed[name] = min(value, 2)
        elif name in ("n_group", "topk_group", "num_expert_group"):
            changed[name] = 1
        elif "experts" in name and "shared" not in name:
            changed[name] = min(value, 4)
    return changed


def _shrink_vocabulary(fields: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(fields.get("vocab_size"), int):
        return {}
    size = min(fields["vocab_size"], VOCAB_SIZE)

    def inside(value: Any) -> Any:
        if isinstance(value, list):
            return [inside(x) for x in value]
        return value if value is None or value < size else 0

    ids = {n: v for n, v in fields.items() if n.endswith("token_id") and isinstance(v, (int, list))}
    return {"vocab_size": size, **{name: inside(value) for name, value in ids.items()}}


def build_small(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model of that config in float32, in eval mode, with random weights that make attention far from uniform.

    Raises:
        ValueError: it would not be small.
    """
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > _LARGEST_UNSHRUNK:
        raise ValueError(f"its small copy would have {size:,} parameters")
    model = model_class(config).float()
    randomise(model.named_parameters(), scale=0.15)
    return model.eval()


@torch.no_grad()
def randomise(parameters: Iterable[tuple[str, torch.Tensor]], scale: float) -> None:
    """Normal values for all but the norms' weights."""
    for name, parameter in parameters:
        if parameter.ndim >= 2 or "norm" not in name:
            parameter.normal_(0, scale)
