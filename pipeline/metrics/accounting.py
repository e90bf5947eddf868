"""What a memory costs and saves: parameters, FLOPs and cache bytes, by the paper's formulas and as kept here.

    python -m pipeline.metrics.accounting --model qwen2.5-3b --cell gated_delta_net --length 128000

Formulas of arXiv 2510.07318 (appendix), with L tokens, W = sinks + window, hidden size D, head dim H, Nq query and
Nkv key/value heads, MLP width I, vocabulary V; mixer and MLP count once a layer:

    mixer, full      4 L D H (Nq + Nkv) + 2 H Nq L^2
    mixer, AHN       4 L D H (Nq + Nkv) + 2 H Nq W^2 + 2 (L - W) (2 W H Nq + H^2 Nq + gates D Nq + H^2 Nq)
    model            mixer + 6 L D I + 4 L D V
    cache, full      2 L H Nkv elements
    cache, AHN       2 W H Nkv + H^2 Nq elements

Layers in which the base itself has a sliding window have no memory: w = that window in place of W, without the terms of
the memory, in both columns.

The paper's published 7B FLOPs do not follow its own formula; they are printed beside.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.config import AccountingConfig, parse_cli
from pipeline.errors import UserError, run_cli

NUM_GATE_PROJECTIONS = {"gated_delta_net": 3, "delta_net": 2, "mamba2": 2}
NUM_WRITE_GATES = {"gated_delta_net": 2, "delta_net": 1, "mamba2": 1}
PUBLISHED_FLOPS = {  # model -> mixer full, mixer AHN, model full, model AHN (GatedDeltaNet, 128,000 tokens)
    "qwen2.5-3b": (2.50e15, 1.17e15, 3.29e15, 1.95e15),
    "qwen2.5-7b": (3.23e15, 1.56e15, 4.87e15, 3.19e15),
    "qwen2.5-14b": (8.83e15, 4.38e15, 11.83e15, 7.39e15),
}


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


@dataclass(frozen=True)
class Pair:
    """A figure with full attention and with sinks + window + AHN."""

    full: float
    ahn: float

    @property
    def ratio(self) -> float:
        return self.ahn / self.full


@dataclass(frozen=True)
class Account:
    """`cache_bytes` by the paper's formula; `kept_bytes` is what our cache holds: keys, values and state in
    `bytes_per_element`, and the window's write gates in float32."""

    added_parameters: int
    mixer_flops: Pair
    model_flops: Pair
    cache_bytes: Pair
    kept_bytes: int


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


def count_parameters(a: Architecture, cell: str) -> int:
    """Parameters that the memories add to the whole model."""
    heads, dim = a.num_attention_heads, a.head_dim
    of_layer = {
        "gated_delta_net": 3 * a.hidden_size * heads + 2 * heads + dim,
        "delta_net": 2 * a.hidden_size * heads + dim,
        "mamba2": 2 * (a.hidden_size + 1) * heads + 2 * heads + heads * dim,
    }[cell] + heads * dim * dim
    return a.num_memory_layers * of_layer


def compute_account(
    a: Architecture, cell: str, length: int, window: WindowSpec, bytes_per_element: int = 4, rows: int = 1
) -> Account:
    """All figures for `rows` sequences of `length` tokens."""
    heads, kv_heads, dim, hidden = a.num_attention_heads, a.num_key_value_heads, a.head_dim, a.hidden_size
    budget = min(window.lossless_budget, length)
    projections = 4 * length * hidden * dim * (heads + kv_heads)
    compressed = 2 * budget * dim * heads + 2 * dim**2 * heads + NUM_GATE_PROJECTIONS[cell] * hidden * heads
    sliding = sum(projections + attention_flops(a, length, size) for size in a.sliding_windows)
    mixer = Pair(
        a.num_memory_layers * (projections + attention_flops(a, length, length)) + sliding,
        a.num_memory_layers * (projections + 2 * dim * heads * budget**2 + 2 * (length - budget) * compressed)
        + sliding,
    )
    rest = 6 * length * hidden * a.intermediate_size * a.num_hidden_layers + 4 * length * hidden * a.vocab_size
    state = dim**2 * heads if length > budget else 0
    full_cache, ahn_cache = 2 * length * dim * kv_heads, 2 * budget * dim * kv_heads + state
    sliding_cache = sum(2 * min(size, length) * dim * kv_heads for size in a.sliding_windows)
    full_cache, ahn_cache, states = (a.num_memory_layers * x for x in (full_cache, ahn_cache, state))
    gates = a.num_memory_layers * NUM_WRITE_GATES[cell] * min(window.window_size, length) * heads * 4
    return Account(
        added_parameters=count_parameters(a, cell),
        mixer_flops=Pair(mixer.full * rows, mixer.ahn * rows),
        model_flops=Pair((mixer.full + rest) * rows, (mixer.ahn + rest) * rows),
        cache_bytes=Pair(*((x + sliding_cache) * rows * bytes_per_element for x in (full_cache, ahn_cache))),
        kept_bytes=rows * ((ahn_cache - states + sliding_cache) * bytes_per_element + states * 4 + gates),
    )


def attention_flops(a: Architecture, length: int, window: int) -> int:
    """One layer's scores and values, for queries that see the newest `window` tokens, by the paper's count."""
    seen = min(window, length)
    return 2 * a.head_dim * a.num_attention_heads * (seen**2 + 2 * (length - seen) * seen)


def format_account(account: Account, published: tuple[float, ...] | None) -> str:
    """The figures as a table; `published` as in PUBLISHED_FLOPS."""
    lines = [
        f"parameters added  {account.added_parameters / 1e6:.2f} M",
        f"{'':<18}{'full':>12}{'AHN':>12}{'ratio':>9}",
    ]
    for name, pair, unit, suffix in (
        ("mixer FLOPs", account.mixer_flops, 1e15, "e15"),
        ("model FLOPs", account.model_flops, 1e15, "e15"),
        ("cache, formula", account.cache_bytes, 1e9, " GB"),
    ):
        values = f"{pair.full / unit:>8.2f}{suffix:<4}{pair.ahn / unit:>8.2f}{suffix:<4}"
        lines.append(f"{name:<18}{values}{pair.ratio:>9.1%}")
    if published is not None:
        mixer_full, mixer_ahn, full, ahn = (x / 1e15 for x in published)
        lines.append(
            f"published FLOPs   mixer {mixer_full:.2f}e15 -> {mixer_ahn:.2f}e15 ({mixer_ahn / mixer_full:.1%}), "
            f"model {full:.2f}e15 -> {ahn:.2f}e15 ({ahn / full:.1%})"
        )
    return "\n".join([*lines, f"kept here         {account.kept_bytes / 1e9:.2f} GB with the window's write gates"])


def main() -> None:
    config = parse_cli(AccountingConfig, prog="python -m pipeline.metrics.accounting")
    architecture, window = load_architecture(config.model), WindowSpec(config.num_sink_tokens, config.window_size)
    account = compute_account(architecture, config.cell, config.length, window, config.bytes_per_element)
    as_published = (config.cell, config.length, window) == ("gated_delta_net", 128_000, WindowSpec(128, 32_640))
    print(f"{config.model}, {config.cell}, {config.length:,} tokens, S = {window.num_sink_tokens}, "
          f"R = {window.window_size:,}")  # fmt: skip
    print(format_account(account, PUBLISHED_FLOPS.get(config.model) if as_published else None))
    if config.json is not None:
        ratios = {n: getattr(account, n).ratio for n in ("mixer_flops", "model_flops", "cache_bytes")}
        config.json.write_text(json.dumps(asdict(account) | {"ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
