"""Which samples this rank reads in which step, with their windows.

A step consumes `global_batch_size` samples of the global order; within it, micro-batch k of rank r holds the `micro`
consecutive samples from (k * ranks + r) * micro. All by arithmetic: the position is one integer, the number of samples
consumed so far over all ranks.
"""

from dataclasses import dataclass, replace
from itertools import islice

from pipeline.config import TrainConfig, WindowConfig
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.loader import SampleStream
from pipeline.training.cached_teacher import CachedTeacher
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
        teacher: where signals of the samples come from, if not from a teacher that runs.
        position: samples consumed so far over all ranks; everything follows from it.
        num_steps: how many steps there will be.
    """

    def __init__(
        self,
        stream: SampleStream,
        train: TrainConfig,
        window: WindowConfig,
        teacher: CachedTeacher | None = None,
        *,
        rank: int,
        dp_size: int,
        position: int,
        num_steps: int,
    ) -> None:
        self._stream, self._train, self._window, self._teacher = stream, train, window, teacher
        self._position = position
        self._num_micro_batches = train.grad_accum_steps(dp_size)
        size = train.global_batch_size
        positions = (
            index
            for start in range(position, position + num_steps * size, size)
            for micro_batch in rank_positions(start, size, train.micro_batch_size, rank, dp_size)
            for index in micro_batch
        )
        depth = max(self._num_micro_batches * train.micro_batch_size, train.loader_workers)
        self._samples = stream.prefetch_with(self._draw, positions, depth, train.loader_workers)

    def next_step(self) -> StepBatches:
        """The next step's micro-batches.

        Raises:
            DataError: a sample or its signal cannot be read or is damaged.
        """
        size = self._train.micro_batch_size
        batches = [collate(list(islice(self._samples, size))) for _ in range(self._num_micro_batches)]
        self._position += self._train.global_batch_size
        return StepBatches(batches, self._position)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._samples.close()

    def _draw(self, position: int) -> DrawnSample:
        """In one of the threads."""
        _, sample = self._stream.read(position)
        window = draw_window(self._train.seed, position, sample.longest_document, self._window)
        drawn = DrawnSample(position, sample, window)
        if self._teacher is None or len(drawn.positions) == 0:
            return drawn
        index = self._stream.dataset_index(position)
        return replace(drawn, signal=self._teacher.find(index, sample.key, drawn.positions))
