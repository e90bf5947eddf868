"""Retained tokens, candidate by candidate and token by token, written from the rule's definition in plain Python."""

from collections.abc import Sequence


def simulate_drops(scores: Sequence[float], num_retained: int, interval: int) -> list[int]:
    """Candidates in the order in which one document and head drops them."""
    retained: list[int] = []
    waiting: list[int] = []  # left the window since the last decision
    losers: list[int] = []  # of the last decision, not yet dropped
    dropped: list[int] = []
    for event in range(len(scores)):
        waiting.append(event)
        if event >= num_retained and (event - num_retained + 1) % interval == 0:
            assert not losers, "every loser is dropped before the next decision"
            ranked = sorted(retained + waiting, key=lambda i: (-scores[i], -i))
            retained, losers, waiting = ranked[:num_retained], sorted(ranked[num_retained:]), []
        if losers:
            dropped.append(losers.pop(0))
    return dropped
