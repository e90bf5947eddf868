"""Sizes of a decoder, from which parameters, FLOPs and bytes are counted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder, under the names of transformers' config.json.

    `sliding_windows`: one for each layer to which the base itself gives a sliding window; it has no memory.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    sliding_windows: tuple[int, ...] = ()

    @property
    def num_memory_layers(self) -> int:
        return self.num_hidden_layers - len(self.sliding_windows)


PRESETS = {
    "qwen2.5-3b": Architecture(2048, 36, 16, 2, 128, 11008, 151936),
    "qwen2.5-7b": Architecture(3584, 28, 28, 4, 128, 18944, 152064),
    "qwen2.5-14b": Architecture(5120, 48, 40, 8, 128, 13824, 152064),
}


def load_architecture(model: str) -> Architecture:
    """A preset, or the sizes in the config.json of a folder or a hub id.

    Raises:
        UserError: neither, or a config without one of the sizes.
    """
    if model in PRESETS:
        return PRESETS[model]
    path = Path(model) / "config.json"
    if not path.is_file() and (Path(model).exists() or model.count("/") != 1):
        raise UserError(f"--model {model}: neither one of {', '.join(PRESETS)} nor a folder with a config.json")
    if not path.is_file():
        from huggingface_hub import hf_hub_download  # only for hub ids

        try:
            path = Path(hf_hub_download(model, "config.json"))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--model {model} is no local folder, and the hub gave no config.json: {reason}") from error
    settings = json.loads(path.read_bytes())
    if settings.get("sliding_window") and "layer_types" not in settings:
        from transformers import AutoConfig  # which layers have the window is a rule of the family

        settings = AutoConfig.from_pretrained(path.parent).to_dict()
    return parse_architecture(settings, str(path))


def parse_architecture(config: dict[str, Any], source: str) -> Architecture:
    """The sizes in the fields of a config.json.

    Args:
        source: where they come from, for a message.

    Raises:
        UserError: one of the sizes is not there.
    """
    heads = config.get("num_attention_heads")
    defaults = {"num_key_value_heads": heads, "head_dim": config.get("hidden_size", 0) // (heads or 1)}
    names = [name for name in Architecture.__dataclass_fields__ if name != "sliding_windows"]
    sizes = {name: config.get(name) or defaults.get(name) for name in names}
    missing = [name for name, value in sizes.items() if not value]
    if missing:
        raise UserError(f"{source} has no {', '.join(missing)}")
    sliding = (config.get("layer_types") or []).count("sliding_attention")
    return Architecture(**sizes, sliding_windows=(config.get("sliding_window"),) * sliding)


def attention_flops(a: Architecture, length: int, window: int) -> int:
    """One layer's scores and values, for queries that see the newest `window` tokens, by the paper's count."""
    seen = min(window, length)
    return 2 * a.head_dim * a.num_attention_heads * (seen**2 + 2 * (length - seen) * seen)
