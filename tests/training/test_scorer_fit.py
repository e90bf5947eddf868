"""Features of candidates as a forward gives them, and scorers fitted to rates that are known."""

import torch

from pipeline.ahn.retention_scorer import MIN_MASS, RetentionScorer
from pipeline.attention.later_mass import later_mass
from pipeline.attention.received import received_mass
from pipeline.attention.window import Document, WindowSpec
from pipeline.training.scorer_features import Candidates, FeatureStore
from pipeline.training.scorer_fit import fit_scorer

HIDDEN, HEADS, TOKENS = 12, 2, 6000


def draw_candidates(generator: torch.Generator, weight: torch.Tensor, mass_weight: torch.Tensor) -> Candidates:
    """Hidden states far from standardised; masses of as many queries as differ between tokens, exact on average."""
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator) * torch.linspace(0.1, 4, HIDDEN) + 2
    received = torch.rand(TOKENS, HEADS, generator=generator) + 0.01
    counts = torch.randint(1, 60, (TOKENS,), generator=generator).float()
    rate = (hidden @ weight.T + mass_weight * (received + MIN_MASS).log() - 5).exp()
    noise = torch.empty(TOKENS, HEADS).exponential_(generator=generator)
    return Candidates(hidden, received, counts[:, None] * rate * noise, counts)


def test_known_rates_are_found_from_noisy_masses() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(HEADS, HIDDEN, generator=generator) / torch.linspace(0.1, 4, HIDDEN) * 0.3
    mass_weight = torch.tensor([0.5, 0.0])
    scorer = RetentionScorer(HIDDEN, HEADS)
    candidates = draw_candidates(generator, weight, mass_weight)
    before, after = fit_scorer(scorer, candidates, generator, steps=1500)
    assert after < before
    fresh = draw_candidates(generator, weight, mass_weight)
    expected = fresh.hidden @ weight.T + mass_weight * (fresh.received + MIN_MASS).log() - 5
    scores = scorer(fresh.hidden[None], fresh.received[None])[0]
    for head in range(HEADS):
        assert torch.corrcoef(torch.stack([scores[:, head], expected[:, head]]))[0, 1] > 0.98
    assert (scores - expected).mean().abs() < 0.1  # the level, too: masses were averages of skewed noise


def test_ranks_that_average_fit_what_one_process_does() -> None:
    """Both ranks have the same candidates here, so that their averages are the one's values."""
    generator = torch.Generator().manual_seed(1)
    candidates = draw_candidates(generator, torch.zeros(HEADS, HIDDEN), torch.ones(HEADS))
    fitted = []
    for average in (lambda x: x, lambda x: torch.stack([x, x]).mean(0)):
        scorer = RetentionScorer(HIDDEN, HEADS)
        fit_scorer(scorer, candidates, torch.Generator().manual_seed(2), average, steps=20)
        fitted.append(scorer.state_dict())
    for name, value in fitted[0].items():
        assert torch.equal(value, fitted[1][name])


def test_features_are_those_of_each_documents_candidates() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, heads, 90, 8, generator=generator) for heads in (4, HEADS))
    hidden, window = torch.randn(1, 90, HIDDEN, generator=generator), WindowSpec(2, 8)
    documents = [Document(0, 0, 50, None), Document(0, 50, 56, None), Document(0, 56, 90, None)]
    store = FeatureStore(documents, window, max_tokens=20)
    store.record(5, q, k, k, hidden, 0.3)
    first, short, last = store.layers[5]
    assert len(short.counts) == 0 and 10 < len(first.counts) <= 20 and len(last.counts) > 10
    part_q, part_k = q[:, :, 56:], k[:, :, 56:]
    sums, counts = later_mass(part_q, part_k, scale=0.3).beyond(8)
    chosen = (torch.isin(hidden[0, 56:, 0], last.hidden[:, 0])).nonzero().squeeze(1)
    assert chosen.min() >= 2 and (counts[chosen] > 0).all()
    torch.testing.assert_close(last.mass, sums[0].T[chosen])
    torch.testing.assert_close(last.received, received_mass(part_q, part_k, window, scale=0.3)[0].T[chosen])
    torch.testing.assert_close(last.counts, counts[chosen].float())
