"""How much of a GPU a training will take, estimated before anything is submitted. Arithmetic only, no torch."""

from dataclasses import dataclass, fields
from typing import Any

from pipeline.attention.retained_blocks import block_size, rows_at_once
from pipeline.attention.window import WindowSpec
from pipeline.config import TrainRunConfig
from pipeline.metrics.accounting import count_parameters
from pipeline.metrics.architecture import Architecture
from pipeline.training.schedules import window_candidates

GIB = 1 << 30
RESERVED = 2.0 * GIB  # CUDA's context, NCCL's buffers, and what the allocator loses to fragments
_ADAPTER_BYTES = {"weights": 4, "gradients": 4, "moments": 8}
# ZeRO stage from which each is divided by the ranks.
_DIVIDED_FROM = {"weights": 3, "gradients": 2, "moments": 1}
_BACKWARD_COPIES = 48  # float32 values for each of a token's H Nq while one layer's backward runs
_LOGITS_COPIES = 4  # student's and teacher's, one's log-softmax and the gradient, each float32


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on each GPU."""

    base: float
    memories: float
    activations: float
    logits: float
    retained: float = 0.0
    reserved: float = RESERVED

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))

    def __str__(self) -> str:
        parts = (f"{part.name} {value / GIB:.1f}" for part in fields(self) if (value := getattr(self, part.name)))
        return f"{self.total / GIB:.1f} GiB ({', '.join(parts)})"


def count_base_parameters(a: Architecture, is_tied: bool) -> int:
    """Parameters of a Qwen2 or Llama: attention, gated MLP, two norms a layer; biases are left out."""
    attention = 2 * a.hidden_size * a.head_dim * (a.num_attention_heads + a.num_key_value_heads)
    of_layer = attention + 3 * a.hidden_size * a.intermediate_size + 2 * a.hidden_size
    return a.num_hidden_layers * of_layer + (1 if is_tied else 2) * a.vocab_size * a.hidden_size


def estimate_gpu_memory(
    config: TrainRunConfig,
    architecture: Architecture,
    is_tied: bool,
    zero: dict[str, Any],
    num_ranks: int,
    sequence_length: int,
) -> GpuMemory:
    """An estimate for the largest micro-batch; real runs differ by what kernels and the allocator keep.

    The copies of the backward pass are fitted to peak memory on a CPU (6 layers, H Nq = 512, 512 and 4,096 tokens:
    growth 0.53 GiB with checkpointing and 1.06 without, estimated 0.51 and 1.20); a GPU's kernels should need less.

        base         parameters x 2 bytes (bfloat16; float32: 4) / ranks at ZeRO-3; there one whole layer more;
                     none with offload_param
        memories     parameters x (weights 4 + gradients 4 + Adam 8); moments / ranks from ZeRO-1, gradients from
                     ZeRO-2, weights from ZeRO-3; moments none with offload_optimizer
        activations  T = tokens of a micro-batch on a rank (micro-batch x sequence length / sequence-parallel size).
                     With checkpointing each layer's input, D a token, and one layer's inner values,
                     8 D + 3 I + 4 H (Nq + Nkv) a token; without it those of all layers. The backward pass of one
                     layer's attention and memory, 48 H Nq float32 a token. A teacher on the fly leaves keys, values
                     and hidden states of up to T tokens in each layer, 2 H Nkv + D a token
        logits       --train.loss_chunk_size x V x 4 bytes x 4; at ZeRO-3 also the whole head
        retained     of --window.retained: the scorers, D Nkv a layer in float32 on every rank; and what attention
                     gathers at one time in the window of those drawn that gathers most (`gathered_bytes`)

    with hidden size D, MLP width I, head dim H, Nq and Nkv query and key-value heads, vocabulary V; two bytes a value
    in bfloat16.

    Args:
        zero: the `zero_optimization` section of --ds_config.
        num_ranks: one a GPU.
        sequence_length: tokens of a sample.
    """
    a, stage = architecture, zero.get("stage", 0)
    width = 2 if config.train.base_dtype == "bfloat16" else 4
    base = count_base_parameters(a, is_tied) * width
    if stage == 3:
        whole_layer = base / a.num_hidden_layers
        base = whole_layer + (0 if _is_offloaded(zero, "offload_param") else base / num_ranks)
    divisors = {part: num_ranks if stage >= first else 1 for part, first in _DIVIDED_FROM.items()}
    sizes = {part: each / divisors[part] for part, each in _ADAPTER_BYTES.items()}
    if _is_offloaded(zero, "offload_optimizer"):
        sizes["moments"] = 0
    tokens = config.train.micro_batch_size * sequence_length / config.sequence_parallel_size
    heads = a.num_attention_heads + a.num_key_value_heads
    inner = 8 * a.hidden_size + 3 * a.intermediate_size + 4 * a.head_dim * heads
    kept = a.hidden_size * a.num_hidden_layers + inner
    if not config.train.activation_checkpointing:
        kept = inner * a.num_hidden_layers
    if config.train.loss == "kl" and config.teacher_cache is None:
        kept += (2 * a.head_dim * a.num_key_value_heads + a.hidden_size) * a.num_hidden_layers
    head = a.vocab_size * a.hidden_size * width if stage == 3 else 0
    return GpuMemory(
        base=base,
        memories=count_parameters(a, config.memory.cell) * sum(sizes.values()),
        activations=tokens * (kept * width + _BACKWARD_COPIES * a.head_dim * a.num_attention_heads * 4),
        logits=config.train.loss_chunk_size * a.vocab_size * 4 * _LOGITS_COPIES + head,
        retained=_retained_bytes(config, a, sequence_length, width),
    )


def gathered_bytes(a: Architecture, window: WindowSpec, num_queries: int, num_heads: int, width: int) -> int:
    """Keys, values and their gradients of the blocks that are gathered together, and their mask, which the kernel takes
    in the keys' dtype: of one text's queries past the budget, in `num_heads` key-value heads."""
    if not window.num_retained_tokens or num_queries < 1:
        return 0
    of_row = 4 * a.head_dim * width + block_size(window, num_queries) * (1 + width)
    return rows_at_once(window, num_queries, num_heads) * of_row


def _retained_bytes(config: TrainRunConfig, a: Architecture, sequence_length: int, width: int) -> float:
    if not config.window.has_scorer:
        return 0.0
    scorers = 4 * a.hidden_size * a.num_key_value_heads * a.num_hidden_layers
    heads = -(-a.num_key_value_heads // config.sequence_parallel_size)
    windows = [
        WindowSpec(0, budget, retained, config.window.interval(retained))
        for budget, _ in window_candidates(sequence_length, config.window)
        for retained in config.window.retained
    ]
    most = max(
        (gathered_bytes(a, w, sequence_length - w.lossless_budget, heads, width) for w in windows),
        default=0,
    )
    layers = 1 if config.train.activation_checkpointing else a.num_hidden_layers
    return scorers + config.train.micro_batch_size * layers * most


def _is_offloaded(zero: dict[str, Any], section: str) -> bool:
    device = (zero.get(section) or {}).get("device", "none")
    return device != "none"
