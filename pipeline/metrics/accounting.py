"""What a memory costs and saves: parameters, FLOPs and cache bytes, by the paper's formulas and as kept here.

    python -m pipeline.metrics.accounting --model qwen2.5-3b --cell gated_delta_net --length 128000

Formulas of arXiv 2510.07318 (appendix), with L tokens, W = sinks + window, hidden size D, head dim H, Nq query and
Nkv key/value heads, MLP width I, vocabulary V; mixer and MLP count once a layer:

    mixer, full      4 L D H (Nq + Nkv) + 2 H Nq L^2
    mixer, AHN       4 L D H (Nq + Nkv) + 2 H Nq W^2 + 2 (L - W) (2 W H Nq + H^2 Nq + gates D Nq + H^2 Nq)
    model            mixer + 6 L D I + 4 L D V
    cache, full      2 L H Nkv elements
    cache, AHN       2 W H Nkv + H^2 Nq elements

With retained tokens W = S + R + M + C - 1 in all of this, and the mixer has the cost of choosing them on top
(retained_cost.py). Layers in which the base itself has a sliding window have no memory: w = that window in place of W,
without the terms of the memory, in both columns.

The paper's published 7B FLOPs do not follow its own formula; they are printed beside.
"""

import json
from dataclasses import asdict, dataclass

from pipeline.attention.window import WindowSpec
from pipeline.config import AccountingConfig, parse_cli
from pipeline.errors import run_cli
from pipeline.metrics.architecture import Architecture, attention_flops, load_architecture
from pipeline.metrics.retained_cost import choice_flops, facts_bytes, sampled_bytes

NUM_GATE_PROJECTIONS = {"gated_delta_net": 3, "delta_net": 2, "mamba2": 2}
NUM_WRITE_GATES = {"gated_delta_net": 2, "delta_net": 1, "mamba2": 1}
PUBLISHED_FLOPS = {  # model -> mixer full, mixer AHN, model full, model AHN (GatedDeltaNet, 128,000 tokens)
    "qwen2.5-3b": (2.50e15, 1.17e15, 3.29e15, 1.95e15),
    "qwen2.5-7b": (3.23e15, 1.56e15, 4.87e15, 3.19e15),
    "qwen2.5-14b": (8.83e15, 4.38e15, 11.83e15, 7.39e15),
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
    """`cache_bytes` by the paper's formula; `kept_bytes` is what our cache holds: keys and values in
    `bytes_per_element`, in float32 the state and the write gates of the window (of all that is kept, where tokens are
    retained), and what is known of each token for that choice. `choice_flops`: what it costs, within the figures of
    `ahn`.
    """

    added_parameters: int
    mixer_flops: Pair
    model_flops: Pair
    cache_bytes: Pair
    kept_bytes: int
    choice_flops: int = 0


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
    a: Architecture, cell: str | None, length: int, window: WindowSpec, bytes_per_element: int = 4, rows: int = 1
) -> Account:
    """All figures for `rows` sequences of `length` tokens; without a cell what attention alone computes and keeps."""
    heads, kv_heads, dim = a.num_attention_heads, a.num_key_value_heads, a.head_dim
    mixer, choice = _mixer_flops(a, cell, length, window), a.num_memory_layers * choice_flops(a, length, window)
    rest = 6 * length * a.hidden_size * a.intermediate_size * a.num_hidden_layers
    rest += 4 * length * a.hidden_size * a.vocab_size
    budget = min(window.lossless_budget, length)
    state = 0 if cell is None or length == budget else a.num_memory_layers * dim**2 * heads
    sliding = sum(2 * min(size, length) * dim * kv_heads for size in a.sliding_windows)
    full_cache, kept = (a.num_memory_layers * 2 * tokens * dim * kv_heads + sliding for tokens in (length, budget))
    side = a.num_memory_layers * _side_bytes(a, cell, length, window, bytes_per_element)
    return Account(
        added_parameters=0 if cell is None else count_parameters(a, cell),
        mixer_flops=Pair(mixer.full * rows, mixer.ahn * rows),
        model_flops=Pair((mixer.full + rest) * rows, (mixer.ahn + rest) * rows),
        cache_bytes=Pair(full_cache * rows * bytes_per_element, (kept + state) * rows * bytes_per_element),
        kept_bytes=rows * (kept * bytes_per_element + state * 4 + side),
        choice_flops=choice * rows,
    )


def _mixer_flops(a: Architecture, cell: str | None, length: int, window: WindowSpec) -> Pair:
    """Attention with its projections, memory and the choice of retained tokens, of all layers and one sequence."""
    heads, dim, budget = a.num_attention_heads, a.head_dim, min(window.lossless_budget, length)
    projections = 4 * length * a.hidden_size * dim * (heads + a.num_key_value_heads)
    sliding = sum(projections + attention_flops(a, length, size) for size in a.sliding_windows)
    own = projections + attention_flops(a, length, budget) + choice_flops(a, length, window)
    if cell is not None:
        own += 2 * (length - budget) * (2 * dim**2 * heads + NUM_GATE_PROJECTIONS[cell] * a.hidden_size * heads)
    return Pair(
        a.num_memory_layers * (projections + attention_flops(a, length, length)) + sliding,
        a.num_memory_layers * own + sliding,
    )


def _side_bytes(a: Architecture, cell: str | None, length: int, window: WindowSpec, bytes_per_element: int) -> int:
    """What one layer's cache keeps beside keys, values and state."""
    if not window.num_retained_tokens:
        gated, known = min(window.window_size, length), 0
    else:
        gated = min(window.lossless_budget, length)
        known = facts_bytes(a, gated) + sampled_bytes(a, length, window, bytes_per_element)
    return known + (0 if cell is None else NUM_WRITE_GATES[cell] * gated * a.num_attention_heads * 4)


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
    if account.choice_flops:
        lines.append(f"choice of tokens  {account.choice_flops / 1e15:.3f}e15 FLOPs, within AHN's")
    return "\n".join([*lines, f"kept here         {account.kept_bytes / 1e9:.2f} GB with write gates"])


def main() -> None:
    config = parse_cli(AccountingConfig, prog="python -m pipeline.metrics.accounting")
    architecture = load_architecture(config.model)
    retained = config.num_retained_tokens, config.decision_interval
    window = WindowSpec(config.num_sink_tokens, config.window_size, *retained)
    account = compute_account(architecture, config.cell, config.length, window, config.bytes_per_element)
    as_published = (config.cell, config.length, window) == ("gated_delta_net", 128_000, WindowSpec(128, 32_640))
    kept = f", M = {retained[0]:,}, C = {retained[1]:,}" if retained[0] else ""
    print(f"{config.model}, {config.cell}, {config.length:,} tokens, S = {window.num_sink_tokens}, "
          f"R = {window.window_size:,}{kept}")  # fmt: skip
    print(format_account(account, PUBLISHED_FLOPS.get(config.model) if as_published else None))
    if config.json is not None:
        ratios = {n: getattr(account, n).ratio for n in ("mixer_flops", "model_flops", "cache_bytes")}
        config.json.write_text(json.dumps(asdict(account) | {"ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
