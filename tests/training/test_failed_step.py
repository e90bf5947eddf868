"""What is left of a step that went wrong, in one process."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.attention.window import WindowSpec
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.clock import PhaseClock
from pipeline.distributed.groups import Ranks
from pipeline.distributed.ulysses import SequenceGroup
from pipeline.teacher.signals import HiddenSignal, HiddenSpec
from pipeline.training.failed_step import report_failed_step
from pipeline.training.run_folder import RunFolder
from pipeline.training.step import NonFiniteError


@pytest.fixture
def alone() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"), SequenceGroup(0, 1, None), PhaseClock())
    dist.destroy_process_group()


def drawn(number: int, cached: bool) -> DrawnSample:
    tokens = np.arange(10, dtype=np.uint32)
    sample = PackedSample(f"k{number}", tokens, np.array([0, 10], np.int32), np.ones(10, np.uint8), {})
    found = DrawnSample(number, sample, WindowSpec(0, 4))
    spec, hidden = HiddenSpec("float32", 2), np.ones((len(found.positions), 2), np.float32)
    return DrawnSample(number, sample, found.window, HiddenSignal.encode(spec, hidden) if cached else None)


@pytest.mark.parametrize("cached", [(True, True), (False, False)])
def test_samples_that_a_cache_supplied_are_told_apart(cached, alone, tmp_path):
    batches = [collate([drawn(number, in_cache)]) for number, in_cache in enumerate(cached)]
    error = report_failed_step(NonFiniteError("the loss is nan", [0]), 3, batches, RunFolder(tmp_path), alone)
    assert "step 3: the loss is nan; samples k0, k1 (" in str(error)
    assert ("2 of 2 with signals of the teacher cache" in str(error)) == cached[0]
    (samples,) = json.loads((tmp_path / "failed_step.json").read_text())["samples_by_rank"]
    assert [sample["from_teacher_cache"] for sample in samples] == list(cached)
