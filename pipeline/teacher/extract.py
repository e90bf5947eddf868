"""Final hidden states of the teacher -> its signal, a chunk of positions at a time.

The distribution is the one that the loss would see: the same logits, from the same product. A position's signal
depends on nothing else than its hidden state, the head, and the seed, key and position that key its draws, except
through the rounding of that product: another number of rows (so another chunk_size), library or device may sum in
another order. Logits then differ by about 1e-6 relative in float32, and some by one rounding step in bfloat16;
log-probabilities follow, tokens of nearly equal probability may change places, and a draw falls on a neighbouring
token as often as the bounds between tokens moved. The same sample with the same chunk_size on the same machine gives
the same bytes. From equal logits the draws are equal anywhere: they are compared with sums of integers, which do not
depend on the order of summation.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from pipeline.losses.output_head import OutputHead
from pipeline.teacher.bit_packing import id_bits
from pipeline.teacher.signals import (
    HiddenSignal,
    HiddenSpec,
    SampledSignal,
    SampledSpec,
    Signal,
    SignalSpec,
    TopKSignal,
    TopKSpec,
    concatenate_signals,
)

_DRAWS_A_BLOCK = 4  # 64-bit numbers from one value of Philox4x64's counter


@torch.no_grad()
def extract_signal(
    spec: SignalSpec,
    hidden: Tensor,
    head: OutputHead,
    sample_key: str,
    positions: np.ndarray,
    chunk_size: int = 256,
) -> Signal:
    """The signal of M positions of one sample.

    Args:
        spec: which signal.
        hidden: the teacher's final normed hidden states [M, D], any float dtype and device.
        head: the frozen one.
        sample_key: the sample's key in the data; with `spec.seed` and the position it determines the draws.
        positions: integers [M], counted within the sample.
        chunk_size: positions whose logits exist at one time.

    Raises:
        ValueError: sizes that do not fit each other or the spec, or a hidden state that is not finite.
    """
    _check_sizes(spec, hidden, head, positions)
    if isinstance(spec, HiddenSpec):
        return HiddenSignal.encode(spec, hidden.cpu().to(torch.float32).numpy())
    parts = []
    for start in range(0, max(len(positions), 1), chunk_size):  # one empty chunk where there are no positions
        logits = head.compute_logits(hidden[start : start + chunk_size])
        if not logits.isfinite().all():
            raise ValueError(f"sample {sample_key}: the teacher's logits are not finite")
        if isinstance(spec, TopKSpec):
            parts.append(_largest(spec, logits))
        else:
            parts.append(_draw(spec, logits, sample_key, positions[start : start + chunk_size]))
    return concatenate_signals(parts)


def _check_sizes(spec: SignalSpec, hidden: Tensor, head: OutputHead, positions: np.ndarray) -> None:
    vocab_size, hidden_size = head.weight.shape
    if hidden.shape != (len(positions), hidden_size):
        raise ValueError(f"hidden states {list(hidden.shape)} of {len(positions)} positions, a head of {hidden_size}")
    size, due = (hidden_size, spec.hidden_size) if isinstance(spec, HiddenSpec) else (vocab_size, spec.vocab_size)
    if size != due:
        raise ValueError(f"the teacher has {size} where the signal {spec} says {due}")


def _largest(spec: TopKSpec, logits: Tensor) -> TopKSignal:
    log_total = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(spec.k, -1)
    log_tail = logits.scatter_(-1, ids, -torch.inf).logsumexp(-1) - log_total[:, 0]
    log_probs = (values - log_total).clamp_(max=0)  # a rounding error above 0 where one token has all the mass
    return TopKSignal(
        spec,
        ids.cpu().numpy().astype(np.uint32),
        log_probs.cpu().numpy().astype(np.float16),
        log_tail.clamp_(max=0).cpu().numpy().astype(np.float32),
    )


def _draw(spec: SampledSpec, logits: Tensor, sample_key: str, positions: np.ndarray) -> SampledSignal:
    uniform = torch.from_numpy(uniform_draws(spec, sample_key, positions)).to(logits.device)
    entropy = compute_entropy(logits).cpu().numpy().astype(np.float32)
    return _count(spec, np.sort(invert_distribution(logits, uniform).cpu().numpy(), 1), entropy)


def compute_entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's distribution in nats, [C].

    Args:
        logits: [C, V]; each row is shifted to a maximum of 0.
    """
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1)
    mean_log_weight = weights.mul_(logits).sum(-1) / total
    return (total.log() - mean_log_weight).clamp_(min=0)  # a rounding error below 0 where one token has all the mass


def invert_distribution(logits: Tensor, uniform: Tensor) -> Tensor:
    """The tokens at which the cumulative distribution reaches `uniform`.

    Summed in integers of 62 bits at most: a token's is exp(logit - max), scaled by a power of two and rounded. What
    rounds to 0 (below 3e-14 of the largest for 151,936 tokens) is never drawn.

    Args:
        logits: [C, V]; their memory is reused.
        uniform: float64 in [0, 1), [C, N].

    Returns:
        int64 [C, N].
    """
    weight_bits = min(62 - id_bits(logits.shape[-1]), 52)
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_().mul_(2.0**weight_bits).round_()
    bounds = weights.to(torch.int64).cumsum_(-1)
    targets = (uniform * bounds[:, -1:]).to(torch.int64)  # below the total also as rounded: uniform <= 1 - 2^-53
    return torch.searchsorted(bounds, targets, right=True)


def _count(spec: SampledSpec, drawn: np.ndarray, entropy: np.ndarray) -> SampledSignal:
    """`drawn` int64 [M, num_draws], ascending; `entropy` float32 [M]."""
    is_first = np.ones(drawn.shape, bool)
    is_first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    counts = np.diff(np.flatnonzero(is_first), append=drawn.size)
    return SampledSignal(
        spec,
        is_first.sum(1).astype(np.uint16),
        drawn[is_first].astype(np.uint32),
        counts.astype(spec.count_dtype),
        entropy,
    )


def uniform_draws(spec: SampledSpec, sample_key: str, positions: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) of 53 bits, a function of (seed, sample_key, position, number of the draw) alone.

    Philox with a key from (seed, sample_key); a position owns the counter's values from position * blocks.

    Returns:
        float64 [M, num_draws].
    """
    if len(positions) == 0:
        return np.empty((0, spec.num_draws))
    digest = hashlib.blake2b(f"{spec.seed}/{sample_key}".encode(), digest_size=16).digest()
    blocks = -(-spec.num_draws // _DRAWS_A_BLOCK)
    wanted, rows = np.unique(positions, return_inverse=True)
    generator, reached, parts = np.random.Philox(key=int.from_bytes(digest, "little")), 0, []
    for stretch in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
        generator.advance((int(stretch[0]) - reached) * blocks)
        parts.append(generator.random_raw(len(stretch) * blocks * _DRAWS_A_BLOCK))
        reached = int(stretch[-1]) + 1
    raw = np.concatenate(parts).reshape(len(wanted), -1)
    return (raw[rows, : spec.num_draws] >> np.uint64(11)) * 2.0**-53
