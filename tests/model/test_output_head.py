"""The output head found of a base, and the losses through it, against autograd through the base's own logits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from pipeline.config import MemoryConfig
from pipeline.errors import UserError
from pipeline.losses.chunked_ce import chunked_cross_entropy
from pipeline.losses.chunked_kl import chunked_forward_kl, score_positions
from pipeline.losses.output_head import OutputHead
from pipeline.losses.sparse_kl import chunked_sampled_kl, chunked_topk_kl
from pipeline.model.loading import load_base
from pipeline.model.output_head import check_output_head, find_output_head
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.signals import SampledSpec, TopKSpec
from pipeline.teacher.teacher_model import check_teacher
from tests.model.conftest import VOCAB
from tests.model.families import HEADS, make_model, save_model

HIDDEN = 64


def own_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """[M, V] of hidden states [M, D] that take the place of the decoder's, with their graph."""

    def replace(_module: nn.Module, _args: tuple, output: object) -> object:
        output.last_hidden_state = hidden[None]
        return output

    with model.get_decoder().register_forward_hook(replace):
        return model(input_ids=torch.ones(1, len(hidden), dtype=torch.int64), use_cache=False).logits[0].double()


def assert_same(actual: Tensor, expected: Tensor, student: Tensor) -> None:
    gradient, due = (torch.autograd.grad(3.0 * x, student, retain_graph=True)[0] for x in (actual, expected))
    assert due.abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, due, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", HEADS)
def test_losses_and_gradients_are_those_of_the_bases_own_logits(family):
    model = make_model(family, **HEADS[family]).double().requires_grad_(False)
    check_output_head(model)
    head = find_output_head(model)
    for num_positions, chunk_size in ((1, 7), (64, 64), (65, 7)):
        torch.manual_seed(num_positions)
        student = torch.randn(num_positions, HIDDEN, dtype=torch.float64, requires_grad=True)
        teacher, weights = torch.randn_like(student), torch.rand(num_positions, dtype=torch.float64)
        targets = torch.randint(VOCAB, (num_positions,))
        q, p = (own_logits(model, x).log_softmax(-1) for x in (student, teacher))
        assert (q - (student @ head.weight.T).log_softmax(-1)).abs().max() > 1e-2, "its head does nothing"
        dense, nll = F.kl_div(q, p, log_target=True, reduction="none").sum(-1), F.nll_loss(q, targets, reduction="none")
        common = head, weights, chunk_size
        assert_same(chunked_forward_kl(student, teacher, *common), dense @ weights, student)
        assert_same(chunked_cross_entropy(student, targets, *common), nll @ weights, student)
        scores = score_positions(student.detach(), teacher, targets, head, chunk_size)
        torch.testing.assert_close(torch.stack(scores[:2]), torch.stack([dense, nll]).detach(), rtol=1e-9, atol=1e-12)
        for tail in ("bucket", "renormalise"):
            values, ids = p.topk(9, -1)
            log_tail = p.scatter(-1, ids, -torch.inf).logsumexp(-1)
            known, q_known = (
                values - (values.logsumexp(-1, keepdim=True) if tail == "renormalise" else 0),
                q.gather(-1, ids),
            )
            due = (known.exp() * (known - q_known)).sum(-1)
            if tail == "bucket":
                due = due + log_tail.exp() * (log_tail - q.scatter(-1, ids, -torch.inf).logsumexp(-1))
            assert_same(chunked_topk_kl(student, ids, values, log_tail, *common, tail), due @ weights, student)
        positions = np.arange(num_positions)
        drawn = extract_signal(SampledSpec(5, 0, VOCAB), teacher, head, "key", positions, chunk_size)
        ids, counts, entropy = map(torch.from_numpy, (*drawn.padded(), drawn.entropy))
        torch.testing.assert_close(entropy, torch.special.entr(p.exp()).sum(-1).float(), rtol=1e-5, atol=1e-6)
        entropy = entropy.double()
        due = -(counts.double() / 5 * q.gather(-1, ids)).sum(-1) - entropy
        assert_same(chunked_sampled_kl(student, ids, counts, entropy, *common), due @ weights, student)
        top = extract_signal(TopKSpec(9, VOCAB), teacher, head, "key", positions, chunk_size)
        values, ids = p.topk(9, -1)
        assert np.array_equal(top.ids, ids)
        np.testing.assert_allclose(top.log_probs, values, rtol=1e-3)  # they are stored in half precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*HEADS, "llama"])
def test_in_a_narrower_dtype_the_logits_are_the_bases_own_but_for_its_rounding(family, dtype):
    model = make_model(family, **HEADS.get(family, {})).to(dtype)
    check_output_head(model)
    hidden = 3 * torch.randn(65, HIDDEN).to(dtype)
    with torch.no_grad():
        own, found = own_logits(model, hidden), find_output_head(model).compute_logits(hidden)
    assert found.dtype == torch.float32
    if family in ("llama", "phi"):
        assert torch.equal(own.float(), found)
    assert (own - found).abs().max() <= 4 * torch.finfo(dtype).eps * own.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_head_computes_what_it_always_did_to_the_last_bit(dtype):
    head = find_output_head(make_model("llama").to(dtype))
    assert head.bias is None and head.scale == 1 and head.softcap is None
    hidden, gradient = torch.randn(33, HIDDEN).to(dtype), torch.randn(33, VOCAB)
    with torch.no_grad():
        assert torch.equal(head.compute_logits(hidden), (hidden @ head.weight.T).float())
        assert torch.equal(head.pull_back(gradient, head.slopes(gradient)), gradient.to(dtype) @ head.weight)


def clamped(self: nn.Module, hidden: Tensor) -> Tensor:
    return self.lm_head(hidden).clamp(-50, 50)


def masked(self: nn.Module, hidden: Tensor) -> Tensor:
    return self.lm_head(hidden).index_fill(-1, torch.tensor([5]), -1e4)


def shifted(self: nn.Module, hidden: Tensor) -> Tensor:
    return self.lm_head(hidden) + 0.5


def normalised(self: nn.Module, hidden: Tensor) -> Tensor:
    return self.lm_head(F.layer_norm(hidden, hidden.shape[-1:]))


def untransformed(self: nn.Module, hidden: Tensor) -> Tensor:
    return hidden @ self.lm_head.weight.T.to(hidden)


class Rectified(nn.Linear):
    """A head that is no linear map."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).relu()


def rectified(self: nn.Module, hidden: Tensor) -> Tensor:
    self.lm_head.__class__ = Rectified
    return self.lm_head(hidden)


@pytest.mark.parametrize(
    ("logits_of", "message"),
    [
        (clamped, r"lm_head's product times a number.*\(largest difference 5.73, at values up to 44.3\)"),
        (masked, r"lm_head's product times a number.*\(largest difference 1e\+04, at"),
        (shifted, r"lm_head's product times a number.*\(largest difference 0.5, at"),
        (normalised, "not its hidden state times a number"),
        (untransformed, "logits.* lm_head"),
        (rectified, r"not those of its lm_head \(largest difference"),
    ],
)
def test_a_head_of_another_form_is_refused_by_name_where_it_is_loaded(tmp_path, monkeypatch, logits_of, message):
    folder = save_model(tmp_path / "base", "llama")

    def forward(self: nn.Module, input_ids: Tensor, use_cache: bool | None = None, **kwargs: object) -> object:
        output = self.model(input_ids=input_ids, use_cache=use_cache, **kwargs)
        output.logits = logits_of(self, output.last_hidden_state)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    loads: list[Callable[[], object]] = [
        lambda: load_base(folder, memory=MemoryConfig(), window=None, dtype=torch.float32)
    ]
    if logits_of is not rectified:
        loads.append(lambda: check_teacher(folder))  # without a weight
    for load in loads:
        with pytest.raises(UserError, match=f"^llama: .*{message}") as refusal:
            load()
        assert "\n" not in str(refusal.value)


def test_the_derivative_of_a_softcap_vanishes_where_it_saturates_without_a_nan():
    head = OutputHead(torch.tensor([[1e4], [-1e4]]), softcap=5.0)
    student = torch.ones(1, 1, requires_grad=True)
    loss = chunked_cross_entropy(student, torch.tensor([1]), head, torch.ones(1))
    assert loss.item() == pytest.approx(10, rel=1e-4)
    assert torch.autograd.grad(loss, student)[0].item() == 0
