"""Features of candidates as a forward gives them, and scorers fitted to rates that are known."""

import threading

import pytest
import torch

from pipeline.ahn.retention_scorer import MIN_MASS, RetentionScorer
from pipeline.attention.later_mass import later_mass
from pipeline.attention.received import received_mass
from pipeline.attention.window import Document, WindowSpec
from pipeline.training.scorer_features import Candidates, FeatureStore, join_candidates
from pipeline.training.scorer_fit import MAX_ELEMENTS, Fit, fit_scorers

HIDDEN, HEADS, TOKENS = 12, 2, 6000


def draw_candidates(
    generator: torch.Generator,
    weight: torch.Tensor,
    mass_weight: torch.Tensor,
    decay: torch.Tensor,
    count: int = TOKENS,
) -> Candidates:
    """Hidden states far from standardised; queries that differ in number between tokens read what is exact on average;
    one bin of four is empty."""
    hidden = torch.randn(count, HIDDEN, generator=generator) * torch.linspace(0.1, 4, HIDDEN) + 2
    received = torch.rand(count, HEADS, generator=generator) + 0.01
    counts = torch.randint(1, 60, (count, 4), generator=generator) * torch.tensor([1.0, 1.0, 0.0, 1.0])
    distances = torch.rand(count, 4, generator=generator) + torch.tensor([100.0, 200.0, 400.0, 800.0])
    rate = log_rate(hidden, received, weight, mass_weight)[..., None] - decay[:, None] * distances[:, None]
    noise = torch.empty(count, HEADS, 1).exponential_(generator=generator)
    return Candidates(hidden, received, counts[:, None] * rate.exp() * noise, counts, distances * (counts > 0))


def log_rate(hidden: torch.Tensor, received: torch.Tensor, weight: torch.Tensor, mass_weight: torch.Tensor):
    return hidden @ weight.T + mass_weight * (received + MIN_MASS).log() - 5


def draw_rates(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The second head reads the more the older a token is: no score has that."""
    weight = torch.randn(HEADS, HIDDEN, generator=generator) / torch.linspace(0.1, 4, HIDDEN) * 0.3
    return weight, torch.tensor([0.5, 0.0]), torch.tensor([2e-3, -1e-3])


def test_known_rates_are_found_from_noisy_masses() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = [draw_rates(generator) for _ in range(3)]
    fit = fit_scorers([draw_candidates(generator, *rate) for rate in rates])
    assert (fit.after < fit.before).all() and fit.losses[-1] < fit.losses[0]
    for values, (weight, mass_weight, decay) in zip(fit.values, rates, strict=True):
        scorer = RetentionScorer(HIDDEN, HEADS)
        scorer.load_state_dict(values)
        fresh = draw_candidates(generator, weight, mass_weight, torch.zeros(HEADS))
        expected = log_rate(fresh.hidden, fresh.received, weight, mass_weight)
        scores = scorer.score(fresh.hidden[None], fresh.received[None], torch.zeros(TOKENS, dtype=torch.int64))[0]
        mean = fresh.read.sum((0, 2)) / fresh.counts.sum()
        best, found, flat = (poisson_loss(fresh, x) for x in (expected, scores, mean.log().expand_as(expected)))
        assert ((flat - found) > 0.8 * (flat - best)).all() and (flat - best > 0).all()  # the ridge costs the rest
        assert scorer.position_weight[0].item() == pytest.approx(decay[0].item(), rel=0.1)
        assert scorer.position_weight[1] == 0


def poisson_loss(c: Candidates, scores: torch.Tensor) -> torch.Tensor:
    return (c.counts.sum(1, keepdim=True) * scores.exp() - c.read.sum(2) * scores).mean(0)


def test_layers_that_do_not_fit_on_the_device_together_are_fitted_one_after_the_other(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(4)
    layers = [draw_candidates(generator, *draw_rates(generator), count=500) for _ in range(3)]
    together = fit_scorers(layers)
    assert 3 * layers[0].hidden.numel() < MAX_ELEMENTS
    monkeypatch.setattr("pipeline.training.scorer_fit.MAX_ELEMENTS", layers[0].hidden.numel() + 1)
    apart = fit_scorers(layers)
    torch.testing.assert_close(apart.after, together.after, rtol=1e-3, atol=1e-3)
    assert len(apart.values) == 3


def test_ranks_fit_what_one_process_does_however_their_candidates_are_shared_out() -> None:
    """One of the three ranks has none."""
    generator = torch.Generator().manual_seed(1)
    whole = [draw_candidates(generator, *draw_rates(generator), count=900) for _ in range(2)]
    parts = [slice(0, 250), slice(0, 0), slice(250, None)]
    meeting, places, results = threading.Barrier(len(parts)), [None] * len(parts), [None] * len(parts)

    def run(rank: int) -> None:
        def add(x: torch.Tensor) -> torch.Tensor:
            places[rank] = x
            meeting.wait(60)
            total = sum(places[1:], places[0])
            meeting.wait(60)
            return total

        results[rank] = fit_scorers([Candidates(*(x[parts[rank]] for x in layer)) for layer in whole], add)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    expected = fit_scorers(whole)
    for fit in results:
        check_equal(fit, results[0], rtol=0)
        torch.testing.assert_close(fit.before, expected.before)
        torch.testing.assert_close(fit.after, expected.after, rtol=1e-3, atol=1e-3)


def check_equal(fit: Fit, expected: Fit, rtol: float) -> None:
    for found, values in zip(fit.values, expected.values, strict=True):
        for name, value in values.items():
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=0)


def test_features_are_those_of_each_documents_candidates() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, 90, 8, generator=generator) for heads in (4, HEADS, HEADS))
    hidden, window = torch.randn(1, 90, HIDDEN, generator=generator), WindowSpec(2, 4, 3)
    documents = [Document(0, 0, 66, window), Document(0, 66, 72, window), Document(0, 72, 90, WindowSpec(1, 4))]
    store = FeatureStore(documents, max_tokens=25, layers=[5])
    store.record(4, q, k, v, hidden, 0.3)  # a sliding layer
    store.record(5, q, k, v, hidden, 0.3)
    found = store.layers[5]
    assert list(store.layers) == [5]
    assert 15 < len(found.counts) <= 25
    assert not torch.isin(hidden[0, 66:72, 0], found.hidden[:, 0]).any()  # nothing of it leaves the window
    part_q, part_k = q[:, :, 72:], k[:, :, 72:]
    sums, counts, distances = later_mass(part_q, part_k, scale=0.3).beyond(4)
    chosen = (torch.isin(hidden[0, 72:, 0], found.hidden[:, 0])).nonzero().squeeze(1)
    own = torch.isin(found.hidden[:, 0], hidden[0, 72:, 0])
    assert len(chosen) > 2 and chosen.min() >= 1 and (counts[chosen].sum(1) > 0).all()
    weight = torch.stack([(x - x.mean(0)).norm(dim=1) for x in v[0, :, 72:]])
    bins = counts.shape[1]  # the first document, the longer one, has more
    torch.testing.assert_close(found.read[own][..., :bins], (sums[0] * weight[..., None]).transpose(0, 1)[chosen])
    assert found.counts.shape[1] > bins and not found.counts[own][:, bins:].any() and found.counts[:, bins:].any()
    received = received_mass(part_q, part_k, WindowSpec(1, 4), scale=0.3)[0].T
    torch.testing.assert_close(found.received[own], received[chosen])
    torch.testing.assert_close(found.counts[own][:, :bins], counts[chosen].float())
    torch.testing.assert_close(found.distances[own][:, :bins], distances[chosen])
    joined = join_candidates([store, FeatureStore([], 25, [5]), store])
    assert len(joined) == 1 and len(joined[0].counts) == 2 * len(found.counts)
