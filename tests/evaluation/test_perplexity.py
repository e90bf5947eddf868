"""Scores of one piece against plain log-softmax over whole logits."""

import pytest
import torch

from pipeline.attention.window import Document
from pipeline.evaluation.perplexity import score_piece
from pipeline.model.loading import load_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import TINY_WINDOW, make_adapter, make_base


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model")
    base = make_base(folder / "base", tiny_tokenizer, TINY_VOCAB_SIZE)
    adapter = make_adapter(folder / "adapter", base)
    return load_model(str(adapter), dtype=torch.float32).double().eval()


@torch.no_grad()
def test_scores_are_those_of_whole_logits(model) -> None:
    ids = torch.randint(0, TINY_VOCAB_SIZE, (90,), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(TINY_WINDOW.lossless_budget, 89)

    def log_probs(window, use_memory):
        document = Document(0, 0, 90, window)
        hidden = model.get_decoder()(input_ids=ids[None], use_cache=False, documents=(document,), use_memory=use_memory)
        logits = model.get_output_embeddings()(hidden.last_hidden_state)
        return logits[0, positions].log_softmax(-1)

    full, window, ahn = log_probs(None, False), log_probs(TINY_WINDOW, False), log_probs(TINY_WINDOW, True)
    assert (ahn - window).abs().max() > 1e-2 and (full - window).abs().max() > 1e-2
    scores = score_piece(model, ids, positions, TINY_WINDOW, chunk_size=32)

    def nll(variant):
        return -variant.gather(-1, ids[positions + 1][:, None])[:, 0]

    def kl(variant):
        return (full.exp() * (full - variant)).sum(-1)

    expected = {
        "kl_window": kl(window),
        "kl_ahn": kl(ahn),
        "nll_full": nll(full),
        "nll_window": nll(window),
        "nll_ahn": nll(ahn),
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(scores, name).double(), values, rtol=1e-6, atol=1e-7, msg=name)


@torch.no_grad()
def test_the_first_scored_position_is_the_first_that_the_window_changes(model) -> None:
    ids = torch.randint(0, TINY_VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(3))
    scores = score_piece(model, ids, torch.arange(59), TINY_WINDOW, chunk_size=7)
    budget = TINY_WINDOW.lossless_budget
    assert scores.kl_window[:budget].abs().max() < 1e-7 and scores.kl_ahn[:budget].abs().max() < 1e-7
    assert scores.kl_window[budget] > 1e-6 and scores.kl_ahn[budget] > 1e-6
