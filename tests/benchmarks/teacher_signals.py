"""What each teacher signal costs and loses: SmolLM2-135M on real text, full attention teaching sinks + window.

Against the dense KL at the same positions: the loss, and the gradient to the student's hidden states, all positions as
one vector. The teacher runs in float32: one that runs in bfloat16 would lose nothing in bfloat16.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import MemoryConfig
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.sparse_kl import Tail, chunked_sampled_kl, chunked_topk_kl
from pipeline.model.loading import load_base
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.signals import HiddenSignal, HiddenSpec, SampledSpec, Signal, SignalSpec, TopKSignal, TopKSpec
from tests.benchmarks.timing import report, seconds

MODEL = Path(__file__).parents[2] / ".cache" / "smollm2-135m"
WINDOW = WindowSpec(num_sink_tokens=32, window_size=224)
NUM_POSITIONS, CHUNK, REPEATS = 1024, 128, 3


def run() -> dict:
    if not MODEL.is_dir():
        raise SystemExit(f"error: {MODEL} is missing; run launchers/demo/fetch_model.py")
    teacher, student, head = _hidden_states()
    vocab_size, hidden_size = head.shape
    sizes = {"vocab_size": vocab_size}
    runs: list[tuple[SignalSpec, Tail]] = [
        *((HiddenSpec(dtype, hidden_size), "bucket") for dtype in ("float32", "bfloat16", "float16", "int8")),
        *((TopKSpec(k, **sizes), tail) for k in (50, 200) for tail in ("bucket", "renormalise")),
        *((SampledSpec(num_draws, 0, **sizes), "bucket") for num_draws in (12, 50, 200)),
    ]
    weights = torch.full((NUM_POSITIONS,), 1 / NUM_POSITIONS)
    dense = _loss_and_gradient(student, lambda s: chunked_forward_kl(s, teacher, head, weights, CHUNK))
    entropy = _mean_entropy(teacher, head)
    print(f"\ndense KL {dense[0]:.4f} nats, the teacher's entropy {entropy:.4f}, {NUM_POSITIONS} positions")
    rows = [_measure(spec, tail, teacher, student, head, weights, dense) for spec, tail in runs]
    return {"kl": dense[0], "entropy": entropy, "signals": report("teacher signals against the dense KL", rows)}


@torch.no_grad()
def _hidden_states() -> tuple[Tensor, Tensor, Tensor]:
    """Final hidden states of teacher and student past the window [M, D], and the head."""
    model = load_base(str(MODEL), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32).eval()
    text = "\n".join(topics[name] for name in sorted(topics))
    length = WINDOW.lossless_budget + NUM_POSITIONS + 1
    tokens = AutoTokenizer.from_pretrained(MODEL)(text[: 8 * length], return_tensors="pt").input_ids[:, :length]
    assert tokens.shape[1] == length
    decoder, positions = model.get_decoder(), slice(WINDOW.lossless_budget, length - 1)
    hidden = [
        decoder(input_ids=tokens, use_cache=False, documents=[Document(0, 0, length, window)], use_memory=memory)
        for window, memory in ((None, False), (WINDOW, True))
    ]
    teacher, student = (output.last_hidden_state[0, positions].clone() for output in hidden)
    return teacher, student, model.get_output_embeddings().weight.detach()


def _measure(
    spec: SignalSpec,
    tail: Tail,
    teacher: Tensor,
    student: Tensor,
    head: Tensor,
    weights: Tensor,
    dense: tuple[float, Tensor],
) -> dict:
    positions = np.arange(NUM_POSITIONS)
    signal: Signal = extract_signal(spec, teacher, head, "benchmark", positions, CHUNK)
    times = [
        seconds(lambda: extract_signal(spec, teacher, head, "benchmark", positions, CHUNK)) for _ in range(REPEATS)
    ]
    loss, gradient = _loss_and_gradient(student, lambda s: _distil(signal, s, head, weights, tail))
    return {
        "signal": _name(spec, tail),
        "bytes_a_position": sum(array.nbytes for array in signal.to_members().values()) / NUM_POSITIONS,
        "kl": loss,
        "kl_error": loss / dense[0] - 1,
        "grad_cosine": torch.nn.functional.cosine_similarity(gradient, dense[1], 0).item(),
        "grad_norm_error": (gradient.norm() / dense[1].norm() - 1).item(),
        "grad_relative_error": ((gradient - dense[1]).norm() / dense[1].norm()).item(),
        "extracted_a_s": NUM_POSITIONS / statistics.median(times),
    }


def _name(spec: SignalSpec, tail: Tail) -> str:
    if isinstance(spec, HiddenSpec):
        return f"hidden {spec.dtype}"
    return f"top-{spec.k} {tail}" if isinstance(spec, TopKSpec) else f"sampled {spec.num_draws}"


def _distil(signal: Signal, student: Tensor, head: Tensor, weights: Tensor, tail: Tail) -> Tensor:
    if isinstance(signal, HiddenSignal):
        return chunked_forward_kl(student, torch.from_numpy(signal.decode()), head, weights, CHUNK)
    if isinstance(signal, TopKSignal):
        arrays = signal.ids.astype(np.int64), signal.log_probs, signal.log_tail
        return chunked_topk_kl(student, *map(torch.from_numpy, arrays), head, weights, CHUNK, tail)
    arrays = *signal.padded(), signal.entropy
    return chunked_sampled_kl(student, *map(torch.from_numpy, arrays), head, weights, CHUNK)


def _loss_and_gradient(student: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    student = student.clone().requires_grad_()
    loss = loss_of(student)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.item(), gradient.flatten().double()


def _mean_entropy(teacher: Tensor, head: Tensor) -> float:
    parts = [torch.special.entr((part @ head.T).softmax(-1)).sum(-1) for part in teacher.split(CHUNK)]
    return torch.cat(parts).mean().item()
