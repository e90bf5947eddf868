"""Which samples this rank reads in which step, with their windows.

A step consumes `global_batch_size` samples of the global order; within it, micro-batch k of rank r holds the `micro`
consecutive samples from (k * ranks + r) * micro. All by arithmetic: the position is one integer, the number of samples
consumed so far over all ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import TrainConfig, WindowConfig
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.loader import SampleStream
from pipeline.training.schedules import draw_window


def rank_positions(
    position: int, global_batch_size: int, micro_batch_size: int, rank: int, dp_size: int
) -> list[list[int]]:
    """Global sample indices of one rank in the step that begins at `position`: a list a micro-batch."""
    return [
        list(range(start, start + micro_batch_size))
        for start in range(position + rank * micro_batch_size, position + global_batch_size, micro_batch_size * dp_size)
    ]


@dataclass(frozen=True)
class StepBatches:
    """This rank's micro-batches of one step, and the state beside them.

    `position`: samples consumed over all ranks once the step is done. It is all that a resume needs: a BatchSource
    that begins there goes on with the next sample of the global order, whatever the ranks, threads or batch sizes.
    """

    micro_batches: list[Batch]
    position: int


class BatchSource:
    """This rank's micro-batches, step after step, read ahead in the background.

    Args:
        position: samples consumed so far over all ranks; everything follows from it.
        num_steps: how many steps there will be.
    """

    def __init__(
        self,
        stream: SampleStream,
        train: TrainConfig,
        window: WindowConfig,
        *,
        rank: int,
        dp_size: int,
        position: int,
        num_steps: int,
    ) -> None:
        self._train, self._window, self._position = train, window, position
        self._num_micro_batches = train.grad_accum_steps(dp_size)
        size = train.global_batch_size
        positions = (
            index
            for start in range(position, position + num_steps * size, size)
            for micro_batch in rank_positions(start, size, train.micro_batch_size, rank, dp_size)
            for index in micro_batch
        )
        depth = max(self._num_micro_batches * train.micro_batch_size, train.loader_workers)
        self._samples = stream.prefetch(positions, depth, train.loader_workers)

    def next_step(self) -> StepBatches:
        """The next step's micro-batches.

        Raises:
            DataError: a sample cannot be read or is damaged.
        """
        size = self._train.micro_batch_size
        batches = [collate(list(self._draw(size))) for _ in range(self._num_micro_batches)]
        self._position += self._train.global_batch_size
        return StepBatches(batches, self._position)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._samples.close()

    def _draw(self, count: int) -> Iterator[DrawnSample]:
        for _ in range(count):
            index, sample = next(self._samples)
            window = draw_window(self._train.seed, index, sample.longest_document, self._window)
            yield DrawnSample(index, sample, window)
