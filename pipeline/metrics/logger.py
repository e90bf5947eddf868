"""metrics.jsonl: one JSON object a step, each step once, over any number of kills and resumes.

TensorBoard, plots and reports are readers of it: TensorBoard files are written beside it as it grows.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pipeline.metrics.wandb_run import WandbRun


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a metrics.jsonl in order; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is empty or torn


class MetricsLogger:
    """Appends steps to metrics.jsonl and to TensorBoard event files in `tensorboard/`.

    Args:
        path: metrics.jsonl of a run folder.
        last_step: the step that the run goes on from; later lines, whose work was lost, are cut off.
        wandb_project: also shows the steps in this project of Weights & Biases.
    """

    def __init__(self, path: Path, last_step: int, wandb_project: str | None = None) -> None:
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= last_step]
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_text("".join(kept))
        self._file = temporary.open("a")
        self.sync()
        temporary.replace(path)
        self._tensorboard = SummaryWriter(str(path.parent / "tensorboard"), purge_step=last_step + 1)
        self._wandb = None if wandb_project is None else WandbRun(wandb_project, path.parent)

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb is not None:
            self._wandb.close()
        self._tensorboard.close()
        self._file.close()

    def log(self, row: dict[str, Any]) -> None:
        """Writes one step; it is in the file when this returns."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key != "step":
                self._tensorboard.add_scalar(key, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(row)

    def sync(self) -> None:
        """Makes all steps so far survive a crash of the machine; call before a checkpoint that goes past them."""
        self._file.flush()
        os.fsync(self._file.fileno())
