"""One optimizer step: agree on totals, forward and backward over the micro-batches, check, update.

The loss is normalised over the whole step (all ranks, all micro-batches), so its totals are exchanged before the
first backward; the same exchange carries stop requests and failures, so that no rank is ever left waiting.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from pipeline.data.collate import Batch
from pipeline.distributed.groups import Ranks, gather_rows, raise_together
from pipeline.errors import UserError
from pipeline.losses.positions import Normalisation, position_weights
from pipeline.metrics.throughput import peak_memory_gib
from pipeline.training.engine import take_step


class NonFiniteError(UserError):
    """The loss or the gradient is NaN or infinite; the optimizer was not stepped. `ranks`: where."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks


@dataclass(frozen=True)
class StepTotals:
    """Sums over all ranks and micro-batches of one step; budgets and sinks over the drawn windows."""

    num_positions: int
    num_samples: int
    num_cached_samples: int
    num_tokens: int
    num_windows: int
    budget_sum: int
    sink_sum: int

    def row(self) -> dict[str, float]:
        """Their fields of metrics.jsonl."""
        row = {"data/positions": self.num_positions, "data/samples": self.num_samples, "data/tokens": self.num_tokens}
        if self.num_windows:
            row["window/budget"] = self.budget_sum / self.num_windows
            row["window/sinks"] = self.sink_sum / self.num_windows
        return row


@dataclass(frozen=True)
class StepResult:
    """`loss` is the global mean that `loss_normalisation` says; `peak_memory_gib` is the largest of all ranks;
    `measured` is float64 [world_size, n]."""

    loss: float
    grad_norm: float
    peak_memory_gib: float
    measured: np.ndarray


def exchange_totals(
    batches: Sequence[Batch], error: UserError | None, stop: bool, ranks: Ranks
) -> tuple[StepTotals, bool]:
    """Adds up what the ranks hold. Collective.

    Args:
        batches: this rank's micro-batches.
        error: why this rank has none; raised on every rank.
        stop: this rank was asked to stop.

    Returns:
        The totals, and whether any rank was asked to stop.

    Raises:
        UserError: some rank had an error.
    """
    windows = [d.window for batch in batches for d in batch.samples if d.window is not None]
    mine = (
        sum(len(batch.positions) for batch in batches),
        sum(batch.num_supervised_samples for batch in batches),
        sum(batch.num_cached_samples for batch in batches),
        sum(batch.num_tokens for batch in batches),
        len(windows),
        sum(window.lossless_budget for window in windows),
        sum(window.num_sink_tokens for window in windows),
    )
    if ranks.sequence.rank > 0:  # the first rank of a group counts for all of it
        mine = (0,) * len(mine)
    rows = gather_rows([*mine, error is not None, stop], ranks)
    if rows[:, -2].any():
        raise_together(error, ranks)
    return StepTotals(*(int(x) for x in rows[:, :-2].sum(0))), bool(rows[:, -1].any())


def run_step(
    engine: DeepSpeedEngine,
    batches: Sequence[Batch],
    totals: StepTotals,
    normalisation: Normalisation,
    ranks: Ranks,
    measure: Callable[[], Sequence[float]] = tuple,
    is_stopped: Callable[[int], bool] = lambda num_done: False,
) -> StepResult | None:
    """Forward, backward and update. Collective.

    Args:
        measure: called after the last backward; what it returns of each rank comes back as `measured`.
        is_stopped: called between two micro-batches with how many are done; the same on all ranks.

    Returns:
        None where `is_stopped`: nothing was updated, and the engine holds gradients of a part of the step.

    Raises:
        NonFiniteError: before anything was updated.
    """
    loss_sum = 0.0
    for number, batch in enumerate(batches):
        if number > 0:
            if is_stopped(number):
                return None
            engine.step()  # counts the previous micro-batch; updates nothing before the last one
        weights = position_weights(batch.sample_of_position, normalisation, totals.num_positions, totals.num_samples)
        with ranks.clock.phase("forward"):
            loss = engine(batch.to(ranks.device), torch.from_numpy(weights).to(ranks.device))
        # The weights already divide by the whole step; DeepSpeed averages over ranks, which must be undone.
        with ranks.clock.phase("backward"):
            engine.backward(loss * ranks.world_size, scale_wrt_gas=False)
        loss_sum += loss.item()
    rows = gather_rows([loss_sum, peak_memory_gib(ranks.device)[1], *measure()], ranks)
    loss_mean = float(rows[:, 0].sum())
    if not math.isfinite(loss_mean):
        bad = [rank for rank, value in enumerate(rows[:, 0]) if not math.isfinite(value)]
        raise NonFiniteError(f"the loss is {loss_mean} (on rank {', '.join(map(str, bad))})", bad)
    with ranks.clock.phase("optimizer"):
        grad_norm = take_step(engine)
    if not math.isfinite(grad_norm):
        everywhere = list(range(ranks.world_size))
        raise NonFiniteError(f"the gradient norm is {grad_norm} at a loss of {loss_mean:.4f}", everywhere)
    return StepResult(loss_mean, grad_norm, float(rows[:, 1].max()), rows[:, 2:])
