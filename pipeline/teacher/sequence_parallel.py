"""The offline teacher job where the ranks of a group compute each sample together: for samples too long for one GPU.

Outside attention a rank has a run of the sample's tokens, inside it all tokens and a share of the heads (Ulysses, arXiv
2309.14509). A group's first rank works as a process of its own does, and tells the others what to compute.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config import TeacherCacheConfig
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import Ranks, gather_rows, init_distributed, leave_distributed, raise_together
from pipeline.distributed.head_shares import HeadShares
from pipeline.distributed.ulysses import redistribute
from pipeline.errors import UserError
from pipeline.model.sequence_shard import SequenceLayout
from pipeline.teacher.capture import Outcome, begin_capture, capture_shards, error_of, finish_capture
from pipeline.teacher.capture_plan import CapturePlan
from pipeline.teacher.document_attention import split_sample
from pipeline.teacher.teacher_model import Teacher


class _Order(NamedTuple):
    """What a group's first rank tells the others: to compute a sample, that all is done, or why it ends."""

    kind: Literal["compute", "done", "failed"]
    tokens: np.ndarray | None = None
    cu_seqlens: np.ndarray | None = None
    positions: np.ndarray | None = None
    message: str = ""


class SequenceParallelTeacher(Teacher):
    """A teacher that each rank holds whole and that a group's ranks run together.

    Args:
        config: of the job.
        ranks: the process group; `ranks.sequence` are those that share a sample.
        heads: of each rank inside attention.
    """

    def __init__(self, config: TeacherCacheConfig, ranks: Ranks, heads: HeadShares) -> None:
        super().__init__(config, ranks.device)
        self._layout = SequenceLayout(ranks.sequence, heads)

    def compute_hidden(self, sample: PackedSample, positions: np.ndarray) -> Tensor:
        """As `Teacher.compute_hidden`, on the group's first rank, while the others `follow`."""
        if len(positions) == 0:
            return self.head.weight.new_empty(0, self.head.weight.shape[1])
        order = self._tell(_Order("compute", sample.input_ids, sample.cu_seqlens, positions))
        return self._compute(order)

    def follow(self) -> None:
        """Computes what the group's first rank asks for, until it is done.

        Raises:
            UserError: it has failed.
        """
        while (order := self._tell(None)).kind == "compute":
            self._compute(order)
        if order.kind == "failed":
            raise UserError(order.message)

    def release(self, error: Exception | None) -> None:
        """Ends `follow` on the other ranks; with the message of `error`, if there is one."""
        self._tell(_Order("done") if error is None else _Order("failed", message=str(error) or type(error).__name__))

    def _tell(self, order: _Order | None) -> _Order:
        box, group = [order], self._layout.group
        dist.broadcast_object_list(box, group=group.process_group, device=self.device, group_src=0)
        return box[0]

    @torch.no_grad()
    def _compute(self, order: _Order) -> Tensor:
        """Final hidden states [M, D] at the order's positions on the group's first rank, [0, D] on the others."""
        (piece,) = split_sample(order.cu_seqlens.tolist(), None)
        shard = self._layout.shard(piece.end)
        padding = [(piece.end, shard.num_tokens)] if shard.num_tokens > piece.end else []
        tokens = torch.from_numpy(order.tokens.astype(np.int64))[None].to(self.device)
        output = self._decoder(
            input_ids=shard.take(tokens),
            position_ids=shard.take(piece.position_ids(self.device)),
            use_cache=False,
            documents=[*piece.documents, *padding],
            shard=shard,
        )
        places = torch.from_numpy(order.positions.astype(np.int64)).to(self.device)
        everything = (len(places), *(0 for _ in shard.counts[1:]))
        own = output.last_hidden_state[0, shard.localise(places)]
        return redistribute(own, shard.count(places), everything, self._layout.group)


def run_sequence_parallel(plan: CapturePlan, heads: HeadShares) -> Outcome:
    """What `run_capture` does, by groups of --sequence_parallel_size ranks; all ranks of the job call it.

    Args:
        plan: what to do.
        heads: of each rank of a group.

    Raises:
        UserError: as `run_capture`; also of another rank.
    """
    ranks = init_distributed(plan.config.sequence_parallel_size)
    raise_together(error_of(lambda: begin_capture(plan)), ranks)
    teacher, outcome = SequenceParallelTeacher(plan.config, ranks, heads), Outcome()
    if gather_rows([len(plan.missing)], ranks).any():
        teacher.load()
        raise_together(error_of(lambda: _capture(plan, teacher, ranks, outcome)), ranks)
    raise_together(error_of(lambda: finish_capture(plan, ranks.world_size, teacher.device, outcome)), ranks)
    leave_distributed()
    return outcome


def _capture(plan: CapturePlan, teacher: SequenceParallelTeacher, ranks: Ranks, outcome: Outcome) -> None:
    if ranks.sequence.rank > 0:
        teacher.follow()
        return
    try:
        capture_shards(plan, ranks.dp_rank, ranks.dp_size, teacher, outcome)
    except Exception as error:
        teacher.release(error)
        raise
    teacher.release(None)
