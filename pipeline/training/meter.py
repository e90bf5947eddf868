"""What a step costs on this rank and on all: the perf/ and comm/ fields of metrics.jsonl.

perf/step_s is the main rank's whole step. perf/step_s_min, _mean and _max are of the ranks' times from the step's
begin to the end of their last backward, where they meet: a slow rank has the largest. Phases are the main rank's:
data, teacher, student, backward and optimizer follow each other; comm (our own exchanges, waiting for other ranks
included) lies within them.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.config import TrainRunConfig
from pipeline.data.collate import Batch
from pipeline.distributed.groups import Ranks
from pipeline.metrics.architecture import parse_architecture
from pipeline.metrics.step_flops import find_peak_tflops, head_flops, student_flops, teacher_flops
from pipeline.model.loading import load_config

PHASES = ("teacher", "student", "backward", "optimizer", "comm")


class StepMeter:
    """Call `begin`, `data_read`, `measure` and `row` in this order in each step."""

    def __init__(self, config: TrainRunConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._peak = _peak_tflops(config, ranks.device)
        self._architecture = None
        if self._peak is not None:
            self._architecture = parse_architecture(load_config(config.model).to_dict(), config.model)
        self._started = self._data_s = 0.0
        self._bytes_before = 0

    def begin(self) -> None:
        """A step begins."""
        self._ranks.clock.collect()  # leaves out what came between two steps, as a save
        self._started, self._bytes_before = time.perf_counter(), self._ranks.sequence.bytes_sent

    def data_read(self) -> None:
        """Its samples are there."""
        self._data_s = time.perf_counter() - self._started

    def measure(self, batches: Sequence[Batch]) -> list[float]:
        """This rank's share, to be gathered: seconds until now and of waiting for data, bytes sent, model FLOPs."""
        return [
            time.perf_counter() - self._started,
            self._data_s,
            self._ranks.sequence.bytes_sent - self._bytes_before,
            sum(map(self._flops, batches)),
        ]

    def row(self, num_tokens: int, shares: np.ndarray | None) -> dict[str, Any]:
        """The step's fields.

        Args:
            num_tokens: of the samples of all ranks.
            shares: `measure` of each rank, [world_size, 4]; None where nothing was computed.
        """
        phases, seconds = self._ranks.clock.collect(), time.perf_counter() - self._started
        phases["student"] = phases.pop("forward", 0.0) - phases.get("teacher", 0.0)
        row = {
            "perf/step_s": seconds,
            "perf/tokens_per_s": num_tokens / seconds,
            "perf/data_s": self._data_s,
            **{f"perf/{name}_s": phases.get(name, 0.0) for name in PHASES},
        }
        if shares is None:
            return row
        for name, values in (("step", shares[:, 0]), ("data", shares[:, 1])):
            row |= {f"perf/{name}_s_{f}": float(getattr(values, f)()) for f in ("min", "mean", "max")}
        row["comm/bytes_sent"] = int(shares[:, 2].sum())
        if self._peak is not None:
            row["perf/mfu"] = float(shares[:, 3].sum()) / (seconds * self._peak * 1e12 * self._ranks.world_size)
        return row

    def _flops(self, batch: Batch) -> int:
        """Of a micro-batch; 0 on all but the first of the ranks that hold it together."""
        a, size = self._architecture, self._ranks.sequence.size
        if a is None or self._ranks.sequence.rank > 0 or len(batch.positions) == 0:
            return 0
        documents, num_positions = batch.student_documents, len(batch.positions)
        whole = size > 1 and self._config.sequence_parallel_mode == "halo"
        flops = student_flops(a, self._config.memory.cell, documents, num_positions, whole=whole)
        if whole:
            return flops
        if self._config.train.loss == "kl" and batch.signal is None:
            return flops + teacher_flops(a, [d.length for d in batch.documents]) + head_flops(a, num_positions)
        return flops + teacher_flops(a, [d.window.lossless_budget for d in documents])


def _peak_tflops(config: TrainRunConfig, device: torch.device) -> float | None:
    """Of one rank's device: as told, or by its name if it computes in bfloat16."""
    if config.train.peak_tflops is not None or device.type != "cuda" or config.train.base_dtype != "bfloat16":
        return config.train.peak_tflops
    return find_peak_tflops(torch.cuda.get_device_name(device))
