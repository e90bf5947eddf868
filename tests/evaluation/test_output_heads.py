"""Perplexity, KL and probing of a base whose head is more than a weight, against its own logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import MemoryConfig
from pipeline.evaluation.heldout.suite import score_variants
from pipeline.evaluation.probing.contributions import kl_without
from pipeline.evaluation.probing.gradients import token_gradients
from pipeline.evaluation.reader import Reader
from pipeline.model.loading import load_base
from tests.model.conftest import VOCAB
from tests.model.families import HEADS, save_model

LENGTH, WINDOW = 30, WindowSpec(2, 6)
POSITIONS = torch.arange(WINDOW.lossless_budget, LENGTH - 1)


@pytest.fixture(scope="module", params=["granite", "phi", "nanochat"])
def model(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp(request.param) / "base", request.param, **HEADS[request.param])
    model = load_base(folder, memory=MemoryConfig(), window=WINDOW, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ahn." in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@torch.no_grad()
def own_log_probs(model, tokens: Tensor, window: WindowSpec | None) -> Tensor:
    documents = [Document(0, 0, LENGTH, window)]
    logits = model(input_ids=tokens[None], use_cache=False, documents=documents, use_memory=window is not None).logits
    return logits[0, POSITIONS].log_softmax(-1)


def test_perplexity_and_kl_are_those_of_the_models_own_logits(model) -> None:
    tokens = torch.randint(1, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(2))
    full, ahn = own_log_probs(model, tokens, None), own_log_probs(model, tokens, WINDOW)
    targets = tokens[POSITIONS + 1]
    with torch.no_grad():
        hidden = model.get_decoder()(tokens[None], use_cache=False).last_hidden_state[0, POSITIONS]
        assert (F.cross_entropy(hidden @ model.lm_head.weight.T, targets) - F.nll_loss(ahn, targets)).abs() > 1e-2
    readers = {name: Reader(model, name, WINDOW, 7, yarn_factor=1.0) for name in ("full", "ahn")}
    scores = score_variants(readers, tokens, POSITIONS, chunk_size=5)
    for name, log_probs in (("full", full), ("ahn", ahn)):
        torch.testing.assert_close(scores["nll"][name], F.nll_loss(log_probs, targets, reduction="none"))
    kl = F.kl_div(ahn, full, log_target=True, reduction="none").sum(-1)
    assert kl.mean() > 1e-2
    torch.testing.assert_close(scores["kl"]["ahn"], kl, rtol=1e-3, atol=1e-5)
    (total,) = kl_without(model, tokens, POSITIONS, WINDOW, [[]], chunk_size=5)
    assert total == pytest.approx(kl.sum().item(), rel=1e-3)
    probed = token_gradients(model, tokens, POSITIONS, WINDOW, chunk_size=5)
    assert probed.loss == pytest.approx(kl[-probed.num_queries :].sum().item(), rel=1e-3)
