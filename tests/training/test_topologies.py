"""Resumes with other ranks, ZeRO stages, sequence parallelism and micro-batches: the run goes on as it would have."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from pipeline.metrics.logger import read_metrics
from tests.distributed.processes import run_ranks
from tests.training import cached_runs
from tests.training.launched_runs import GLOBAL_BATCH, arguments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
AHEAD = 2  # steps that a stage does past the one that the next stage goes on from: the second shows the moments
OFTEN = ("--train.save_every", "1", "--train.keep_checkpoints", "4")


class Stage(NamedTuple):
    """`until`: the step that the next stage goes on from."""

    num_ranks: int
    until: int
    zero: dict[str, str]
    flags: tuple[str, ...]


STAGES = [
    Stage(2, 8, {"rise": "zero1", "fall": "zero3"}, ()),
    Stage(4, 14, {"rise": "zero3", "fall": "zero1"}, ("--sequence_parallel_size", "2")),
    Stage(1, 17, {"rise": "zero2", "fall": "zero3"}, ("--train.micro_batch_size", "2")),
]


def run_stage(stage: Stage, inputs: Path, folder: Path) -> dict[str, list[dict]]:
    """Runs each case's next stage and sends it back to `until`; the rows of metrics.jsonl as they were before."""
    runs = [
        [[str(x) for x in arguments(inputs, folder / case, *OFTEN, *stage.flags, zero=zero)], stage.until + AHEAD]
        for case, zero in stage.zero.items()
    ]
    (folder / "runs.json").write_text(json.dumps(runs))
    finished = run_ranks(Path(cached_runs.__file__), [folder / "runs.json"], folder, num_ranks=stage.num_ranks)
    assert [f.returncode for f in finished] == [0] * stage.num_ranks, finished[0].output[-3000:]
    for case in stage.zero:
        (folder / case / "checkpoints" / "latest").write_text(f"step-{stage.until:07d}")
    return {case: read_metrics(folder / case / "metrics.jsonl") for case in stage.zero}


def test_two_ranks_then_four_then_one_go_on_with_the_loss_that_was_due(inputs, tmp_path):
    rows = [run_stage(stage, inputs, tmp_path) for stage in STAGES]
    for case in STAGES[0].zero:
        for stage, before, after in zip(STAGES, rows, rows[1:], strict=False):
            due, found = (part[case][stage.until : stage.until + AHEAD] for part in (before, after))
            assert [row["step"] for row in found] == [stage.until + 1, stage.until + 2]
            for step, other in zip(due, found, strict=True):
                assert other["data/consumed_samples"] == step["data/consumed_samples"] == GLOBAL_BATCH * step["step"]
                assert other["perf/step_s"] != step["perf/step_s"]  # done anew
                assert other["data/positions"] == step["data/positions"] > 0
                assert other["loss/kl"] == pytest.approx(step["loss/kl"], abs=1e-6), (case, stage, step["step"])
        assert [row["step"] for row in rows[-1][case]] == list(range(1, STAGES[-1].until + AHEAD + 1))
        weights = load_file(tmp_path / case / "adapter" / "model.safetensors")
        assert weights["model.layers.1.ahn.fn.o_proj.weight"].abs().max() > 1e-3  # the memory acts
