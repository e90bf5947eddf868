"""The training loss of a run folder, for the report."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

LOSS_LABELS = {"loss/kl": "training loss: KL (nats)", "loss/ce": "training loss: cross entropy (nats)"}


@dataclass(frozen=True)
class TrainingCurve:
    """Loss by optimizer step; `label` names the loss and its unit."""

    steps: list[int]
    losses: list[float]
    label: str


def read_training_curve(run: Path) -> TrainingCurve:
    """Reads a run folder's metrics.jsonl.

    Raises:
        UserError: there is no metrics.jsonl, or it holds no training loss.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"--run {run}: no metrics.jsonl there; give the --output of launchers/train.py")
    text = path.read_text()
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # one may be being written
    for key, label in LOSS_LABELS.items():
        chosen = [row for row in rows if row.get(key) is not None]
        if chosen:
            return TrainingCurve([row["step"] for row in chosen], [row[key] for row in chosen], label)
    raise UserError(f"--run {run}: metrics.jsonl holds none of {', '.join(LOSS_LABELS)}")
