"""A model of lm-eval's in several processes: each takes its share of every task's examples, and all is counted."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.evaluation.evictions import NOTHING
from pipeline.evaluation.lm_eval_counts import RequestCounts

logger = logging.getLogger(__name__)


@contextmanager
def collective() -> Iterator[None]:
    """What all processes do together.

    Raises:
        UserError: one of them has ended.
    """
    try:
        yield
    except RuntimeError as error:  # gloo: connection closed by peer
        raise UserError("another process failed; its line says why") from error


class SharedLM(HFLM):
    """lm-eval's own class, where torch.distributed is initialised with the whole model in each process.

    `counts`: of this process's requests. `truncation_side` says where a long context is cut; `window`, what evicts;
    `positions`, how many full attention has.
    """

    truncation_side: Literal["middle", "left"] = "left"
    window: WindowSpec | None = None
    positions: int | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what lm-eval's class takes."""
        super().__init__(*arguments, **options)
        self.counts = RequestCounts()
        self._counts_of_ranks: list[RequestCounts] = []
        self._told: Counter[tuple[str, int]] = Counter()  # what was counted when evictions were last looked at
        if dist.is_initialized():
            self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's number of a task's requests in place of every rank's: lm-eval would fill up shorter shares with
        copies of a request, which only models that work in step need."""
        return tensor.repeat(self.world_size)

    def barrier(self) -> None:
        """Waits for all ranks, has each know the others' counts, and says if none of their requests evicted any."""
        if self.world_size > 1:
            counts: list[Any] = [None] * self.world_size
            with collective():
                dist.all_gather_object(counts, self.counts)
            self._counts_of_ranks = counts
            self._tell_evictions()

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """As lm-eval's."""
        with collective():
            return super().gather_object(obj, dst)

    def count_all(self) -> RequestCounts:
        """Of all processes together, up to the last barrier."""
        return sum(self._counts_of_ranks or [self.counts], RequestCounts())

    def fit(self, context: list[int], room: int, request: Instance) -> list[int]:
        """The context, or `room` tokens of it; counts both by task."""
        self.counts.requests[request.task_name] += 1
        if len(context) <= room:
            return context
        self.counts.truncated[request.task_name] += 1
        num_first = room // 2 if self.truncation_side == "middle" else 0
        return context[:num_first] + context[len(context) - (room - num_first) :]

    def count_read(self, request: Instance, length: int, num_new: int = 0) -> None:
        """Counts by task what `length` tokens evict, and whether they and `num_new` more exceed full attention."""
        if self.window is not None:
            self.counts.evicted[request.task_name, self.window.num_evicted(length)] += 1
        elif self.positions is not None:
            self.counts.beyond[request.task_name] += length + num_new > self.positions

    def warn_without_evictions(self) -> None:
        """Says, before the requests just counted are read, that they evict nothing; of several processes, which may
        have all their answers from --use_cache and not come here, the barrier after the requests says it."""
        if self.world_size == 1:
            self._tell_evictions()

    def _tell_evictions(self) -> None:
        evicted = self.count_all().evicted
        new, self._told = evicted - self._told, evicted
        if self.rank == 0 and max((number for _, number in new), default=1) == 0:
            logger.warning("%s (%s)", NOTHING, self.window)
