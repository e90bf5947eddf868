"""A model of lm-eval's in several processes: each takes its share of every task's examples, and all is counted."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.errors import UserError


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

    `num_requests` and `num_truncated` count by task the requests of this process, and those whose context was cut.
    `truncation_side` says where.
    """

    truncation_side: Literal["middle", "left"] = "left"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what lm-eval's class takes."""
        super().__init__(*arguments, **options)
        self.num_requests: Counter[str] = Counter()
        self.num_truncated: Counter[str] = Counter()
        self._counts_of_ranks: list[tuple[Counter[str], Counter[str]]] = []
        if dist.is_initialized():
            self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's number of a task's requests in place of every rank's: lm-eval would fill up shorter shares with
        copies of a request, which only models that work in step need."""
        return tensor.repeat(self.world_size)

    def barrier(self) -> None:
        """Waits for all ranks, and has each know the others' counts."""
        if self.world_size > 1:
            counts: list[Any] = [None] * self.world_size
            with collective():
                dist.all_gather_object(counts, (self.num_requests, self.num_truncated))
            self._counts_of_ranks = counts

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """As lm-eval's."""
        with collective():
            return super().gather_object(obj, dst)

    def count_all(self) -> tuple[Counter[str], Counter[str]]:
        """`num_requests` and `num_truncated` of all processes together, up to the last barrier."""
        of_ranks = self._counts_of_ranks or [(self.num_requests, self.num_truncated)]
        return sum((r for r, _ in of_ranks), Counter()), sum((t for _, t in of_ranks), Counter())

    def fit(self, context: list[int], room: int, request: Instance) -> list[int]:
        """The context, or `room` tokens of it; counts both by task."""
        self.num_requests[request.task_name] += 1
        if len(context) <= room:
            return context
        self.num_truncated[request.task_name] += 1
        num_first = room // 2 if self.truncation_side == "middle" else 0
        return context[:num_first] + context[len(context) - (room - num_first) :]
