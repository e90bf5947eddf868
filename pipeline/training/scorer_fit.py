"""Fits the scorers of retained tokens: every layer's and head's linear log rate of the mass that later queries give.

Poisson regression: a token that n later queries were looked at and gave the mass m has the loss n e^s - m s, which is
least where e^s is the expected mass a query. Unlike a loss of the logarithm of m / n it is not led astray by tokens
that few queries read, and read much. Convex; features are standardised while it is minimised, and the scale goes into
the weights at the end.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.ahn.retention_scorer import MIN_MASS, RetentionScorer
from pipeline.training.scorer_features import Candidates

STEPS, TOKENS_A_STEP, LEARNING_RATE = 500, 1024, 2e-3


def fit_scorer(
    scorer: RetentionScorer,
    candidates: Candidates,
    generator: torch.Generator,
    average: Callable[[Tensor], Tensor] = lambda x: x,
    steps: int = STEPS,
) -> tuple[float, float]:
    """Sets the scorer's parameters.

    Args:
        scorer: of one layer.
        candidates: of that layer.
        generator: draws the tokens of each step.
        average: of a tensor over all ranks, each with candidates of its own.
        steps: of AdamW.

    Returns:
        The loss per unit of mass before and after: of one rate for all tokens of a head, and of the scores.
    """
    features, log_received = candidates.hidden.float(), (candidates.received + MIN_MASS).log()
    mean, scale = _moments(features, average)
    mass_mean, mass_scale = _moments(log_received, average)
    features, log_received = (features - mean) / scale, (log_received - mass_mean) / mass_scale
    mass, counts = candidates.mass, candidates.counts[:, None]
    rate = average(mass.sum(0)) / average(counts.sum(0))
    weight = torch.zeros(mass.shape[1], features.shape[1], requires_grad=True)
    mass_weight = torch.zeros(mass.shape[1], requires_grad=True)
    bias = rate.clamp(min=1e-9).log().requires_grad_()
    unit = average(mass.sum(0)) / average(torch.tensor(float(len(mass))))

    def loss_of(rows: Tensor) -> Tensor:
        scores = features[rows] @ weight.T + mass_weight * log_received[rows] + bias
        losses = counts[rows] * scores.exp() - mass[rows] * scores
        return (losses.mean(0) / unit).mean()

    everything = torch.arange(len(mass))
    with torch.no_grad():
        before = average(loss_of(everything)).item()
    optimizer = torch.optim.AdamW([weight, mass_weight, bias], lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(mass), (min(TOKENS_A_STEP, len(mass)),), generator=generator)
        optimizer.zero_grad()
        loss_of(rows).backward()
        for parameter in (weight, mass_weight, bias):
            parameter.grad = average(parameter.grad)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        after = average(loss_of(everything)).item()
        weight = weight / scale
        mass_weight = mass_weight / mass_scale
        scorer.weight.copy_(weight)
        scorer.mass_weight.copy_(mass_weight)
        scorer.bias.copy_(bias - weight @ mean - mass_weight * mass_mean)
    return before, after


def _moments(x: Tensor, average: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over all ranks' rows."""
    mean = average(x.mean(0))
    return mean, average((x - mean).square().mean(0)).sqrt().clamp(min=1e-6)
