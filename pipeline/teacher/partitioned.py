"""The offline teacher job for a teacher that does not fit on one GPU: ZeRO-3 partitions it over the ranks.

Each rank still works on shards of its own; a forward of any of them is a forward of all (lock_step.py).
"""

import copy
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.integrations import HfDeepSpeedConfig

from pipeline.config import TeacherCacheConfig
from pipeline.distributed.deepspeed_check import check_deepspeed_config
from pipeline.distributed.groups import Ranks, gather_rows, init_distributed, leave_distributed, raise_together
from pipeline.model.output_head import find_output_head, whole
from pipeline.teacher.capture import Outcome, begin_capture, capture_shards, error_of, finish_capture
from pipeline.teacher.capture_plan import CapturePlan
from pipeline.teacher.document_attention import Piece
from pipeline.teacher.lock_step import LockStep
from pipeline.teacher.teacher_model import Teacher, load_teacher

_STAND_IN = Piece(0, 1, (0, 1))


class PartitionedTeacher(Teacher):
    """A teacher of which each rank holds a part, and the head whole. All ranks load it together.

    Args:
        config: of the job.
        ranks: the process group.
        lock_step: with the same ranks.
        settings: DeepSpeed's, as `load_partition_config` returns them.
    """

    def __init__(self, config: TeacherCacheConfig, ranks: Ranks, lock_step: LockStep, settings: dict[str, Any]) -> None:
        super().__init__(config, ranks.device)
        self._lock_step, self._settings = lock_step, settings

    def load(self) -> None:
        """Reads the weights: rank 0 for all. Collective."""
        # zero.Init makes parameters in the dtype of the settings' precision section; the engine gets none.
        precision = {"bf16": {"enabled": self.config.base_dtype == "bfloat16"}}
        partitioning = HfDeepSpeedConfig(copy.deepcopy(self._settings) | precision)
        model = load_teacher(self.config)
        del partitioning  # in force as long as it lives
        with whole(find_output_head(model)) as head:
            self.head = head.copy_to(self.device)
        self._decoder, *_ = deepspeed.initialize(model=model.get_decoder(), config=self._settings)
        self._decoder.eval()
        self.is_loaded = True

    def _forward(self, tokens: Tensor, piece: Piece, past: DynamicCache | None) -> Tensor:
        return self._lock_step.work(lambda: super(PartitionedTeacher, self)._forward(tokens, piece, past))

    @torch.no_grad()
    def finish(self, show_progress: Callable[[], None]) -> None:
        """Takes part in the other ranks' forwards until no rank has work."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self._lock_step.idle(lambda: super(PartitionedTeacher, self)._forward(token, _STAND_IN, None), show_progress)


def run_partitioned(plan: CapturePlan, settings: dict[str, Any]) -> Outcome:
    """What `run_capture` does, with one teacher for all ranks of the job; all of them call it and end together.

    Args:
        plan: what to do.
        settings: DeepSpeed's, as `load_partition_config` returns them.

    Raises:
        UserError: as `run_capture`; also of another rank; DeepSpeed does not take the settings.
    """
    assert plan.config.ds_config is not None
    check_deepspeed_config(plan.config.ds_config, settings)
    ranks = init_distributed()
    raise_together(error_of(lambda: begin_capture(plan)), ranks)
    lock_step = LockStep(ranks)
    teacher = PartitionedTeacher(plan.config, ranks, lock_step, settings)
    outcome = Outcome()
    if gather_rows([len(plan.missing)], ranks).any():
        teacher.load()
        try:
            capture_shards(plan, ranks.rank, ranks.world_size, teacher, outcome)
        except Exception as error:
            lock_step.fail(error)
            raise
    raise_together(error_of(lambda: finish_capture(plan, ranks.world_size, teacher.device, outcome)), ranks)
    leave_distributed()
    return outcome
