"""Fits the scorers of retained tokens: every layer's and head's linear log rate of what later queries read.

Poisson regression: a token of which n queries at distance d read m in all has the loss n e^(s - c d) - m (s - c d),
which is least where e^(s - c d) is what such a query is expected to read. Unlike a loss of the logarithm of m / n it is
not led astray by tokens that few queries read, and read much. c is the head's, how fast what is read falls with
distance; it becomes the weight of the position. Convex; features are standardised while it is minimised, and the scale
goes into the weights at the end. A small ridge keeps weights small where candidates do not determine them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.ahn.retention_scorer import MIN_MASS
from pipeline.training.scorer_features import Candidates

NUM_ITERATIONS, HISTORY, MIN_RATE = 60, 10, 1e-9
RIDGE = 1500.0
"""Divided by the number of candidates; chosen on held-out text of SmolLM2, where a factor of 3 changes little."""
MAX_ELEMENTS = 2**28
"""Features that are on the device at one time."""
AddRanks = Callable[[Tensor], Tensor]


class Fit(NamedTuple):
    """L layers' fitted scorers. `values`: the parameters of each. `losses`: at each evaluation of the first layers that
    are fitted together, mean over layers and heads, per unit of what is read, with the ridge; `before`, `after` [L]:
    without.
    """

    values: list[dict[str, Tensor]]
    losses: list[float]
    before: Tensor
    after: Tensor


def fit_scorers(
    layers: Sequence[Candidates],
    add: AddRanks = lambda x: x,
    device: torch.device | str = "cpu",
    num_iterations: int = NUM_ITERATIONS,
) -> Fit:
    """Fits the scorers of all layers. Collective where `add` is.

    Args:
        layers: each layer's candidates, as many in each; on ranks, this rank's own, which may be none.
        add: the sum of a tensor over all ranks.
        device: to compute on.
        num_iterations: of L-BFGS at most.

    Returns:
        The same on all ranks.
    """
    hidden = layers[0].hidden
    at_once = max(1, MAX_ELEMENTS // max(1, hidden.numel()))
    values, losses, before, after = [], [], [], []
    for first in range(0, len(layers), at_once):
        problem = _Problem(layers[first : first + at_once], add, torch.device(device))
        before.append(problem.loss())
        found = problem.minimise(num_iterations)
        losses = losses or found
        after.append(problem.loss())
        values += problem.scorer_values()
    return Fit(values, losses, torch.cat(before), torch.cat(after))


class _Problem:
    """Some layers' fits as one: they are independent of each other."""

    def __init__(self, layers: Sequence[Candidates], add: AddRanks, device: torch.device) -> None:
        self._add = add
        stacked = (torch.stack(x).to(device) for x in zip(*layers, strict=True))
        hidden, received, read, self._counts, distances = stacked
        self._read, self._num_bins = read.sum(-1), distances.shape[-1]
        self._far = add((self._counts * distances).sum()) / add(self._counts.sum()).clamp(min=1)
        self._distances = distances / self._far
        self._read_far = torch.einsum("lnhb,lnb->lnh", read, self._distances)
        self._num_candidates = add(torch.tensor(float(hidden.shape[1]), device=device))
        self._hidden, self._mean, self._scale = self._standardise(hidden.float())
        self._received, self._received_mean, self._received_scale = self._standardise((received + MIN_MASS).log())
        total = add(self._read.sum(1))
        self._unit = (total / self._num_candidates).clamp(min=MIN_RATE)
        self.weight = hidden.new_zeros(*total.shape, hidden.shape[2], dtype=torch.float32).requires_grad_()
        self.mass_weight = torch.zeros_like(total).requires_grad_()
        self.decay = torch.zeros_like(total).requires_grad_()
        rate = total / add(self._counts.sum((1, 2)))[:, None]
        self.bias = rate.clamp(min=MIN_RATE).log().requires_grad_()

    def minimise(self, num_iterations: int) -> list[float]:
        """Sets the parameters; the loss at each evaluation."""
        parameters, losses = [self.weight, self.mass_weight, self.decay, self.bias], []
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=num_iterations, history_size=HISTORY, line_search_fn="strong_wolfe"
        )

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            loss = self._own_loss().sum()
            loss.backward()
            for parameter in parameters:
                parameter.grad = self._add(parameter.grad)
            # After the sum, so that the ranks' number has no influence on it.
            ridge, weight = RIDGE / self._num_candidates, self.weight.detach()
            penalty = ridge * weight.square().sum()
            self.weight.grad += 2 * ridge * weight
            loss = self._add(loss.detach()) + penalty
            losses.append(loss.item() / self.bias.numel())
            return loss

        optimizer.step(evaluate)
        return losses

    @torch.no_grad()
    def loss(self) -> Tensor:
        """Of each layer, per unit of what is read, mean over heads and all ranks' candidates."""
        return self._add(self._own_loss()).mean(-1).cpu()

    @torch.no_grad()
    def scorer_values(self) -> list[dict[str, Tensor]]:
        """The parameters of each layer's `RetentionScorer`, for features as they are."""
        weight, mass_weight = self.weight / self._scale, self.mass_weight / self._received_scale[:, 0]
        shift = (weight * self._mean).sum(-1) + mass_weight * self._received_mean[:, 0]
        # What grew with age would in the end retain the oldest tokens for ever.
        position_weight = (self.decay / self._far).clamp(min=0)
        values = {"weight": weight, "mass_weight": mass_weight, "position_weight": position_weight}
        values["bias"] = self.bias - shift
        return [{name: x[layer].cpu() for name, x in values.items()} for layer in range(len(weight))]

    def _own_loss(self) -> Tensor:
        """This rank's part of each layer's and head's loss, [l, Hkv]."""
        scores = torch.einsum("lnd,lhd->lnh", self._hidden, self.weight)
        scores = scores + self.mass_weight[:, None] * self._received + self.bias[:, None]
        expected = sum(self._expected(number) for number in range(self._num_bins)) * scores.exp()
        losses = expected - self._read * scores + self.decay[:, None] * self._read_far
        return losses.sum(1) / (self._num_candidates * self._unit)

    def _expected(self, number: int) -> Tensor:
        """Queries of a bin, each as much as is read at its distance of what is read at none, [l, N, Hkv]."""
        counts, distances = self._counts[..., number, None], self._distances[..., number, None]
        return counts * (-self.decay[:, None] * distances).exp()

    def _standardise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[l, N, n] with mean 0 and standard deviation 1 of each column over all ranks' rows; both, [l, 1, n]."""
        mean = self._add(x.sum(1, keepdim=True)) / self._num_candidates
        x = x - mean
        scale = (self._add(x.square().sum(1, keepdim=True)) / self._num_candidates).sqrt().clamp(min=1e-6)
        return x.div_(scale), mean, scale
