"""The distillation loss against its definition with whole logits, on a model whose memory acts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.attention.window import WindowSpec
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.model.output_head import find_output_head
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.online import compute_teacher_hidden
from pipeline.teacher.signals import HiddenSpec, SampledSpec, TopKSpec
from pipeline.training.distillation import Distillation
from tests.distributed.engine_cases import build_model
from tests.training.synthetic import VOCABULARY, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("distillation") / "model")
    return build_model(str(folder), "float32", activation_checkpointing=False).double()


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    samples = []
    for number, (lengths, window) in enumerate([([30, 14], WindowSpec(2, 5)), ([25], WindowSpec(0, 9))]):
        tokens = generator.integers(0, VOCABULARY, sum(lengths), dtype=np.uint32)
        sample = PackedSample(f"s{number}", tokens, np.cumsum([0, *lengths], dtype=np.int32), None, {})
        samples.append(DrawnSample(number, sample, window))
    return collate(samples)


def logits(model, batch, documents, **extra):
    output = model.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, documents=documents, **extra
    )
    return model.get_output_embeddings()(output.last_hidden_state)[0, batch.positions]


def test_kl_is_that_of_teacher_and_student_logits_and_its_gradient_too(model, batch):
    weights = torch.rand(len(batch.positions), dtype=torch.float64)
    student = logits(model, batch, batch.documents).log_softmax(-1)
    with torch.no_grad():
        teacher = logits(model, batch, batch.teacher_documents).log_softmax(-1)
        blind = logits(model, batch, batch.documents, use_memory=False).log_softmax(-1)
    assert (student - blind).abs().max() > 1e-2, "the memory does not act"
    expected = (weights * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)).sum()
    expected_gradients = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
    loss = Distillation(model, "kl", loss_chunk_size=7)(batch, weights)
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert wanted.norm() > 0 and (got - wanted).norm() <= 1e-9 * wanted.norm()


def test_cross_entropy_is_that_of_the_next_token(model, batch):
    weights = torch.rand(len(batch.positions), dtype=torch.float64)
    student = logits(model, batch, batch.documents)
    expected = (weights * F.cross_entropy(student, batch.targets, reduction="none")).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = Distillation(model, "ce", loss_chunk_size=7)(batch, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    wanted = torch.autograd.grad(expected, parameters)
    for got, gradient in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        assert (got - gradient).norm() <= 1e-9 * gradient.norm()


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_a_batch_without_positions_has_zero_loss_and_a_zero_gradient_for_every_parameter(model, loss):
    tokens = np.arange(9, dtype=np.uint32)
    sample = PackedSample("s", tokens, np.array([0, 9], np.int32), None, {})
    idle = collate([DrawnSample(0, sample, None)])
    value = Distillation(model, loss, loss_chunk_size=7)(idle, torch.zeros(0, dtype=torch.float64))
    gradients = torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])
    assert value.item() == 0.0 and all(g is not None and g.abs().max() == 0 for g in gradients)


def teacher_signal(model, batch, spec):
    hidden, _ = compute_teacher_hidden(model.get_decoder(), batch)
    return extract_signal(spec, hidden, find_output_head(model), "key", np.arange(len(batch.positions)))


@pytest.mark.parametrize(
    ("spec", "relative"),
    [
        (HiddenSpec("float32", 32), 1e-6),
        (HiddenSpec("float16", 32), 1e-2),
        (HiddenSpec("bfloat16", 32), 5e-2),
        (HiddenSpec("int8", 32), 1e-1),
        (TopKSpec(VOCABULARY, VOCABULARY), 1e-2),
        (SampledSpec(60_000, 0, VOCABULARY), 5e-2),
    ],
)
def test_a_cached_signal_gives_loss_and_gradient_of_the_teacher_as_exactly_as_it_is_stored(
    model, batch, spec, relative
):
    """And without a teacher's pass: the first forward is one over the prefixes alone."""
    weights = torch.rand(len(batch.positions), dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    module, lengths = Distillation(model, "kl", loss_chunk_size=7), []
    expected = module(batch, weights)
    wanted = torch.autograd.grad(expected, parameters)
    cached = replace(batch, signal=teacher_signal(model, batch, spec))
    watch = model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    loss = module(cached, weights)
    gradients = torch.autograd.grad(loss, parameters)
    watch.remove()
    assert lengths == [2 * 7 + 9, 30 + 14 + 25 - (2 * 7 + 9)]
    assert loss.item() == pytest.approx(expected.item(), rel=relative)
    for got, gradient in zip(gradients, wanted, strict=True):
        assert gradient.norm() > 0 and (got - gradient).norm() <= 3 * relative * gradient.norm()


def test_what_is_done_with_the_mass_outside_the_k_tokens_is_a_choice(model, batch):
    cached = replace(batch, signal=teacher_signal(model, batch, TopKSpec(5, VOCABULARY)))
    weights = torch.full((len(batch.positions),), 1 / len(batch.positions), dtype=torch.float64)
    dense, bucket, renormalised = (
        Distillation(model, "kl", 7, tail)(given, weights).item()
        for given, tail in ((batch, "bucket"), (cached, "bucket"), (cached, "renormalise"))
    )
    assert 0 < bucket < dense  # merging tokens cannot raise a divergence
    assert abs(renormalised - dense) > 0.1 * dense
