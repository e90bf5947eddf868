"""Which candidate is dropped when: the rule of retained tokens, for a whole document at once.

Candidates arrive one an event. When candidate M + (d + 1) C - 1 arrives, decision d leaves the M best of the retained
and of the C that arrived since decision d - 1; the C losers are dropped in order of position, one an event, the first
at once. Best is the highest score; of equal scores the younger. So a loser is one that has M better before it and the
decision, for good, and its decision follows from when the M-th better one arrived: a quantile of a prefix, which a
wavelet matrix answers for all candidates together in log2(N) steps, without a loop over decisions.

Source of the wavelet matrix: Claude, Navarro, Ordonez, "The wavelet matrix", Information Systems 47 (2015).
"""

import torch
from torch import Tensor


def drop_order(scores: Tensor, num_retained: int, interval: int) -> Tensor:
    """`decided_order` of those that are dropped by the time the last candidate has arrived, int64
    [.., max(0, N - (M + C - 1))]: the n-th is dropped at event M + C - 1 + n."""
    num_dropped = max(0, scores.shape[-1] - (num_retained + interval - 1))
    return decided_order(scores, num_retained, interval)[..., :num_dropped]


def decided_order(scores: Tensor, num_retained: int, interval: int) -> Tensor:
    """
    Args:
        scores: of N candidates in order of position, [.., N]; without NaN.
        num_retained: M >= 0.
        interval: C >= 1; 1 where M is 0.

    Returns:
        The losers of all decisions in the order in which they are dropped, int64 [.., C floor((N - M) / C)]; those of
        the last one may still wait for their turn.
    """
    num_candidates = scores.shape[-1]
    first_event = num_retained + interval - 1
    num_losers = max(0, (num_candidates - num_retained) // interval * interval)
    arrival = torch.arange(num_candidates, device=scores.device).expand(scores.shape)
    if num_retained == 0 or num_losers == 0:
        return arrival[..., :num_losers]
    best_first = num_candidates - 1 - scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    beaten = torch.maximum(best_first, _smallest_of_prefix(best_first, num_retained))
    decision = (beaten - first_event + interval - 1).clamp(min=0) // interval
    decision[..., :num_retained] = num_candidates  # the best of all are never dropped
    decision = torch.empty_like(decision).scatter(-1, best_first, decision)
    return decision.argsort(dim=-1, stable=True)[..., :num_losers]


def drop_events(order: Tensor, num_candidates: int, never: int) -> Tensor:
    """The event at which each candidate is dropped, int64 [.., N], from `drop_order`; `never` for the others."""
    first_event = num_candidates - order.shape[-1]
    events = torch.full((*order.shape[:-1], num_candidates), never, device=order.device)
    when = torch.arange(first_event, num_candidates, device=order.device)
    return events.scatter(-1, order, when.expand(order.shape))


def _smallest_of_prefix(values: Tensor, rank: int) -> Tensor:
    """For each n the `rank`-th smallest of the first n of a permutation of 0 .. N - 1, int64 [.., N]; n from 0 on,
    what comes out for n < rank means nothing."""
    size = values.shape[-1]
    place = torch.arange(size, device=values.device)
    start, end = torch.zeros_like(values), place.expand(values.shape)
    rest, result = torch.full_like(values, rank - 1), torch.zeros_like(values)
    for bit in reversed(range((size - 1).bit_length())):
        is_zero = (values >> bit & 1) == 0
        zeros = torch.nn.functional.pad(is_zero.cumsum(-1), (1, 0))  # among the first n, [.., N + 1]
        zeros_before, all_zeros = zeros[..., :-1], zeros[..., -1:]
        start_zeros, end_zeros = zeros.gather(-1, start), zeros.gather(-1, end)
        go_right = rest >= end_zeros - start_zeros
        result += go_right << bit
        rest = torch.where(go_right, rest - (end_zeros - start_zeros), rest)
        start = torch.where(go_right, all_zeros + start - start_zeros, start_zeros)
        end = torch.where(go_right, all_zeros + end - end_zeros, end_zeros)
        target = torch.where(is_zero, zeros_before, all_zeros + place - zeros_before)
        values = torch.empty_like(values).scatter(-1, target, values)
    return result
