"""Each kernel on this machine against its plain form, and twenty real training steps."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ahn.backend import use_backend
from pipeline.ahn.base import l2_normalise
from pipeline.ahn.delta_net import chunk_delta_rule, naive_recurrent_delta_rule
from pipeline.ahn.gated_delta_net import chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from pipeline.ahn.mamba2 import chunk_ssd, naive_recurrent_ssd
from pipeline.attention.retained_attention import retained_attention
from pipeline.attention.retention import drop_order
from pipeline.attention.sink_window import sink_window_attention
from pipeline.attention.window import WindowSpec
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.output_head import OutputHead

WINDOW = WindowSpec(num_sink_tokens=16, window_size=112)
RETAINING = WindowSpec(num_sink_tokens=16, window_size=48, num_retained_tokens=24, decision_interval=8)
LENGTH = 320
# Relative error of outputs and gradients that arithmetic of the kind explains; TF32 rounds like bfloat16's mantissa
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's page."""

    name: str
    status: Literal["ok", "failed", "left out"]
    detail: str


def run_checks(device: torch.device) -> Iterator[Check]:
    """Every check that this machine can do, as it is done."""
    dtypes = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    rules = {
        "GatedDeltaNet": (chunk_gated_delta_rule, naive_recurrent_gated_delta_rule, 2),
        "DeltaNet": (chunk_delta_rule, naive_recurrent_delta_rule, 1),
        "Mamba2": (chunk_ssd, naive_recurrent_ssd, 2),
    }
    for name, (chunked, naive, num_gates) in rules.items():
        with use_backend("torch"):
            yield _compare(f"{name}: torch chunks against the recurrence", *_rule(chunked, naive, num_gates, device))
        if device.type != "cuda":
            yield Check(f"{name}: fla's Triton kernel", "left out", "needs CUDA")
            continue
        for dtype in dtypes:
            yield _compare(
                f"{name}: fla's Triton kernel against the recurrence, {_short(dtype)}",
                *_rule(chunked, naive, num_gates, device, dtype),
                dtype,
            )
    kind = "flex_attention" if device.type == "cuda" else "blocked SDPA"
    for dtype in dtypes:
        name = f"sinks + window: {kind} against the dense mask, {_short(dtype)}"
        yield _compare(name, *_attention(device), dtype)
    w = RETAINING
    shown = f"S = {w.num_sink_tokens}, R = {w.window_size}, M = {w.num_retained_tokens}, C = {w.decision_interval}"
    for dtype in dtypes:
        name = f"retained tokens ({shown}): gathered blocks against the dense mask, {_short(dtype)}"
        yield _compare(name, *_retained_attention(device), dtype)
    if importlib.util.find_spec("flash_attn") is None or device.type != "cuda":
        yield Check(
            "flash-attn",
            "left out",
            "needs CUDA and requirements-gpu.txt; nothing else uses it (full attention is SDPA's)",
        )
    else:
        yield _compare("flash-attn against SDPA, bfloat16", *_flash_attention(device), torch.bfloat16)
    yield _compare("chunked KL against whole logits", *_loss(device))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare(
    name: str,
    actual: Callable[..., Tensor],
    expected: Callable[..., Tensor],
    inputs: list[Tensor],
    dtype: torch.dtype = torch.float32,
) -> Check:
    """Outputs and gradients of two forms of a function, the expected one in float32."""
    results = []
    for function, kind in ((actual, dtype), (expected, torch.float32)):
        leaves = [x.detach().to(kind).requires_grad_() for x in inputs]
        output = function(*leaves)
        torch.manual_seed(0)
        weight = torch.randn(output.shape, device=output.device)
        results.append([output, *torch.autograd.grad((output.float() * weight).sum(), leaves)])
    error = max(((a.float() - e.float()).norm() / e.float().norm()).item() for a, e in zip(*results, strict=True))
    status = "ok" if error <= TOLERANCE[dtype] else "failed"
    return Check(name, status, f"relative error {error:.1e} (limit {TOLERANCE[dtype]:.0e})")


def _rule(
    chunked: Callable, naive: Callable, num_gates: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Callable, Callable, list[Tensor]]:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, LENGTH, 4, 64, device=device) for _ in range(3))
    gates = [-torch.rand(1, LENGTH, 4, device=device) * 0.2, torch.rand(1, LENGTH, 4, device=device)][-num_gates:]

    def gates_in_float(rule: Callable) -> Callable:
        return lambda q, k, v, *gates: rule(q, k, v, *(g.float() for g in gates))[0]

    return gates_in_float(chunked), gates_in_float(naive), [l2_normalise(q), l2_normalise(k), v, *gates]


def _attention(device: torch.device) -> tuple[Callable, Callable, list[Tensor]]:
    torch.manual_seed(2)
    position = torch.arange(LENGTH).numpy()
    mask = torch.from_numpy(WINDOW.visible(position[:, None], position[None])).to(device)
    inputs = [torch.randn(1, heads, LENGTH, 64, device=device) for heads in (4, 2, 2)]

    return lambda q, k, v: sink_window_attention(q, k, v, WINDOW, scale=0.125), _dense(mask), inputs


def _dense(mask: Tensor) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.125, enable_gqa=True).transpose(1, 2)

    return attend


def _retained_attention(device: torch.device) -> tuple[Callable, Callable, list[Tensor]]:
    """Which tokens are retained is decided on the device at once, and for the mask one decision after another."""
    torch.manual_seed(5)
    reach = RETAINING.num_sink_tokens + RETAINING.window_size
    scores = torch.randint(8, (1, 2, LENGTH - reach), device=device).float()  # with ties, which age decides
    order = drop_order(scores, RETAINING.num_retained_tokens, RETAINING.decision_interval)
    position = torch.arange(LENGTH)
    dropped = torch.full((2, LENGTH), LENGTH)
    for head, of_head in enumerate(scores[0].tolist()):
        for candidate, event in _drops_one_by_one(of_head).items():
            dropped[head, RETAINING.num_sink_tokens + candidate] = reach + event
    visible = (position <= position[:, None]) & (position[:, None] < dropped[:, None])
    mask = visible.repeat_interleave(2, 0).to(device)  # two query heads a key-value head
    inputs = [torch.randn(1, heads, LENGTH, 64, device=device) for heads in (4, 2, 2)]

    return lambda q, k, v: retained_attention(q, k, v, RETAINING, order, scale=0.125), _dense(mask), inputs


def _drops_one_by_one(scores: list[float]) -> dict[int, int]:
    """Candidate -> the event at which it is dropped, for those that are by the end."""
    retained, interval, held, drops = RETAINING.num_retained_tokens, RETAINING.decision_interval, [], {}
    for event in range(len(scores)):
        held.append(event)
        if event >= retained and (event - retained + 1) % interval == 0:
            losers = sorted(sorted(held, key=lambda candidate: (scores[candidate], candidate))[:interval])
            drops |= {candidate: event + turn for turn, candidate in enumerate(losers)}
            held = [candidate for candidate in held if candidate not in losers]
    return {candidate: event for candidate, event in drops.items() if event < len(scores)}


def _flash_attention(device: torch.device) -> tuple[Callable, Callable, list[Tensor]]:
    from flash_attn import flash_attn_func

    torch.manual_seed(3)
    inputs = [torch.randn(1, 4, LENGTH, 64, device=device) for _ in range(3)]

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)

    return flash, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), inputs


def _loss(device: torch.device) -> tuple[Callable, Callable, list[Tensor]]:
    torch.manual_seed(4)
    student, teacher = (torch.randn(100, 64, device=device) for _ in range(2))
    head, weights = torch.randn(5000, 64, device=device), torch.rand(100, device=device)

    def whole(student: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student @ head.T, -1), F.log_softmax(teacher @ head.T, -1)
        return (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * weights).sum()

    return lambda student: chunked_forward_kl(student, teacher, OutputHead(head), weights, 32), whole, [student]
