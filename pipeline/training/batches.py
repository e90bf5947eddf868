"""Which samples this rank reads in which step, with their windows.

Sample g of the global order belongs to step g // global_batch; within a step, micro-batch k of rank r holds the
`micro` consecutive samples from (k * ranks + r) * micro. All by arithmetic: the position is one integer.
"""

from collections.abc import Iterator

from pipeline.config import TrainConfig, WindowConfig
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.loader import PackedDataset, SampleStream
from pipeline.training.schedules import draw_window


def rank_positions(
    step: int, global_batch_size: int, micro_batch_size: int, rank: int, dp_size: int
) -> list[list[int]]:
    """Global sample indices of one rank in one step: a list a micro-batch."""
    first = step * global_batch_size
    return [
        list(range(start, start + micro_batch_size))
        for start in range(first + rank * micro_batch_size, first + global_batch_size, micro_batch_size * dp_size)
    ]


class BatchSource:
    """This rank's micro-batches, step after step, read ahead in the background.

    Args:
        first_step: where to begin; everything follows from it.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        train: TrainConfig,
        window: WindowConfig,
        *,
        rank: int,
        dp_size: int,
        first_step: int,
    ) -> None:
        self._seed, self._window = train.seed, window
        self._micro_batch_size = train.micro_batch_size
        self._num_micro_batches = train.grad_accum_steps(dp_size)
        positions = (
            position
            for step in range(first_step, train.max_steps)
            for micro_batch in rank_positions(step, train.global_batch_size, train.micro_batch_size, rank, dp_size)
            for position in micro_batch
        )
        stream = SampleStream(dataset, train.seed)
        self._samples = stream.prefetch(positions, depth=self._num_micro_batches * self._micro_batch_size)

    def next_step(self) -> list[Batch]:
        """The next step's micro-batches.

        Raises:
            DataError: a sample cannot be read or is damaged.
        """
        return [collate(list(self._draw(self._micro_batch_size))) for _ in range(self._num_micro_batches)]

    def _draw(self, count: int) -> Iterator[DrawnSample]:
        for _ in range(count):
            index, sample = next(self._samples)
            yield DrawnSample(index, sample, draw_window(self._seed, index, sample.longest_document, self._window))
