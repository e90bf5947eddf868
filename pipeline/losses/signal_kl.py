"""The distillation loss from whatever is known of the teacher: one entry for all kinds of signal."""

import numpy as np
import torch
from torch import Tensor

from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.output_head import OutputHead
from pipeline.losses.sparse_kl import Tail, chunked_sampled_kl, chunked_topk_kl
from pipeline.teacher.signals import HiddenSignal, Signal, TopKSignal


def chunked_signal_kl(
    student_hidden: Tensor,
    signal: Signal,
    head: OutputHead,
    position_weights: Tensor,
    chunk_size: int = 256,
    tail: Tail = "bucket",
) -> Tensor:
    """Weighted sum over positions of KL(teacher || student); differentiable in `student_hidden` only.

    Exact from hidden states, a lower bound (`bucket`) or biased (`renormalise`) from the K most probable tokens, an
    unbiased estimate from draws.

    Args:
        student_hidden: final normed hidden states [M, D], any float dtype.
        signal: the teacher's, of the same M positions.
        head: the shared frozen one.
        position_weights: [M]; 1/N for a mean over N positions.
        chunk_size: positions whose logits exist at one time.
        tail: topk: what becomes of the remaining mass.

    Returns:
        Scalar in nats, float32 (float64 for float64 inputs).
    """
    device = student_hidden.device
    common = head, position_weights, chunk_size
    if isinstance(signal, HiddenSignal):
        return chunked_forward_kl(student_hidden, hidden_tensor(signal, device), *common)
    if isinstance(signal, TopKSignal):
        arrays = signal.ids.astype(np.int64), signal.log_probs, signal.log_tail
        return chunked_topk_kl(student_hidden, *(_tensor(array, device) for array in arrays), *common, tail)
    ids, counts = signal.padded()
    arrays = ids, counts.astype(np.int32), signal.entropy  # kernels for unsigned integers are few
    return chunked_sampled_kl(student_hidden, *(_tensor(array, device) for array in arrays), *common)


def hidden_tensor(signal: HiddenSignal, device: torch.device) -> Tensor:
    """The hidden states [M, D] on `device`, in the dtype that they are stored in; int8 times its scale as float32."""
    if signal.spec.dtype == "bfloat16":
        return _tensor(signal.values.view(np.int16), device).view(torch.bfloat16)
    values = _tensor(signal.values, device)
    return values if signal.scale is None else values.float() * _tensor(signal.scale, device)[:, None]


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    # torch wants to be able to write; what is read from a cache is a view of the bytes that were read.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
