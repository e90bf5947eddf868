"""Finds the output head of a base: what its forward does between the last hidden state and the logits.

Families scale the hidden state or the product, cap it, add a bias, and name all that differently. So the model is
asked: its own forward runs with a decoder and a head that return chosen values, and what comes out is compared with the
one form that `OutputHead` has. That reads no weight. `check_output_head` then compares logits, weights included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from pipeline.losses.output_head import OutputHead
from pipeline.model.supported import UnsupportedModelError, family_of

_SMALL, _LARGE = 2.0**-20, 2.0**30  # where a softcap is linear, and where it has saturated
_PRODUCTS = (0.0, _SMALL, -1.0, 1.0, -9.0, 9.0, -70.0, 70.0, 600.0, _LARGE)
_MAGNITUDES = (0.0, 1.0, 4.0, 32.0)  # of hidden states; final norms give about 1
_TOLERANCE = 1e-5


class _DecoderOutput(BaseModelOutputWithPast):
    """What a decoder gives; of what some families' give besides, nothing becomes logits."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def find_output_head(model: PreTrainedModel) -> OutputHead:
    """The model's head, by what its forward does; its weights may be partitioned, or on the meta device.

    Raises:
        UnsupportedModelError: it does something that `OutputHead` does not.
    """
    module = model.get_output_embeddings()
    if getattr(module, "weight", None) is None:
        raise UnsupportedModelError(f"{_name(model)}: has no output embeddings, whose weights the loss needs")
    vocab_size, hidden_size = getattr(module.weight, "ds_shape", module.weight.shape)
    hidden = torch.arange(1, hidden_size + 1, dtype=torch.float64).expand(1, len(_PRODUCTS), -1)
    products = torch.tensor(_PRODUCTS, dtype=torch.float64)[None, :, None].repeat(1, 1, vocab_size)
    seen: list[Tensor] = []

    def give_products(x: Tensor) -> Tensor:
        seen.append(x.detach().double())
        return products.clone()

    with _replaced_forward(module, give_products):
        logits = _own_logits(model, hidden).double()
    if len(seen) != 1 or seen[0].shape != hidden.shape or logits.shape != products.shape:
        raise UnsupportedModelError(f"{_name(model)}: its logits do not come from one product with lm_head")
    input_scale = (seen[0] / hidden).mean().item()
    scale = (logits[0, 1, 0] / _SMALL).item()
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale  # where a model computes it in float32
    ceiling = logits[0, -1, 0].item()
    softcap = None if abs(ceiling - scale * _LARGE) <= 1e-3 * abs(scale * _LARGE) else ceiling
    head = OutputHead(module.weight, getattr(module, "bias", None), input_scale * scale, softcap)
    due = scale * products if softcap is None else softcap * torch.tanh(scale * products / softcap)
    _require_equal(model, seen[0], input_scale * hidden, "what it gives lm_head is not its hidden state times a number")
    _require_equal(model, logits, due, "its logits are not lm_head's product times a number, under a softcap or none")
    if head.bias is not None and input_scale != 1:
        raise UnsupportedModelError(
            f"{_name(model)}: scales its hidden state by {input_scale:.3g} before a biased lm_head"
        )
    return head


@torch.no_grad()
def check_output_head(model: PreTrainedModel) -> None:
    """Compares the head with the model's own logits, at a few hidden states. Collective where ZeRO-3 partitions it.

    Raises:
        UnsupportedModelError: they differ by more than the rounding of the head's dtype.
    """
    with whole(find_output_head(model)) as head:
        weight = head.weight
        generator = torch.Generator().manual_seed(0)
        hidden = (
            torch.randn(len(_MAGNITUDES), weight.shape[1], generator=generator) * torch.tensor(_MAGNITUDES)[:, None]
        )
        hidden = hidden.to(weight)
        own, ours = _own_logits(model, hidden[None])[0], head.compute_logits(hidden)
    rounding = 8 * torch.finfo(weight.dtype).eps
    _require_equal(model, own.to(ours), ours, "its logits are not those of its lm_head", rounding)


@contextmanager
def whole(head: OutputHead) -> Iterator[OutputHead]:
    """`head` with all its rows: gathered over the ranks where ZeRO-3 partitions it, and released after."""
    partitioned = [x for x in (head.weight, head.bias) if hasattr(x, "ds_id")]
    if not partitioned:
        yield head
        return
    import deepspeed  # takes seconds; whoever partitioned them has it already

    with deepspeed.zero.GatheredParameters(partitioned):
        yield head


def _own_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [1, T, V] of the model's own forward, at hidden states [1, T, D] that its decoder does not compute."""
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    calls: list[None] = []

    def give_hidden(*_args: object, **_kwargs: object) -> _DecoderOutput:
        calls.append(None)
        return _DecoderOutput(last_hidden_state=hidden)

    try:
        with torch.no_grad(), _replaced_forward(model.get_decoder(), give_hidden):
            output = model(input_ids=tokens, use_cache=False)
    except RuntimeError as error:  # of dtypes, shapes or absent weights: it computes more than was foreseen
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{_name(model)}: its logits are not lm_head of its hidden state: {reason}"
        ) from error
    if len(calls) != 1:
        raise UnsupportedModelError(f"{_name(model)}: its forward does not call its decoder")
    return output.logits


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    before = module.__dict__.get("forward")  # of the instance: libraries put their hooks there
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _require_equal(
    model: PreTrainedModel, actual: Tensor, expected: Tensor, fault: str, tolerance: float = _TOLERANCE
) -> None:
    """Row by row, so that a fault at small values does not hide behind large ones."""
    differences, sizes = (x.abs().amax(-1).flatten() for x in (actual - expected, expected))
    wrong = ~(differences <= tolerance * sizes)
    if wrong.any():
        worst = torch.where(wrong, differences / sizes, -1).argmax()
        difference, size = differences[worst], sizes[worst]
        raise UnsupportedModelError(
            f"{_name(model)}: {fault} (largest difference {difference:.3g}, at values up to {size:.3g}), so "
            f"the losses and the teacher cannot reproduce its logits"
        )


def _name(model: PreTrainedModel) -> str:
    return family_of(model.config)
