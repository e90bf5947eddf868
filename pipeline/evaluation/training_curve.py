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
        UserError: there is no metrics.jsonl, it cannot be read, a whole line of it is damaged, or it holds no training
            loss.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"--run {run}: no metrics.jsonl there; give the --output of launchers/train.py")
    rows = _read_rows(path)
    for key, label in LOSS_LABELS.items():
        chosen = [row for row in rows if key in row]
        if chosen:
            return TrainingCurve([row["step"] for row in chosen], [row[key] for row in chosen], label)
    raise UserError(f"--run {run}: metrics.jsonl holds none of {', '.join(LOSS_LABELS)}")


def _read_rows(path: Path) -> list[dict[str, float]]:
    """Step and losses of each whole line."""
    rows = []
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # the last may be being written
        for line in lines:
            row = json.loads(line)
            kept = {"step": row["step"], **{name: row[name] for name in LOSS_LABELS if row.get(name) is not None}}
            for name, value in kept.items():
                if not isinstance(value, int | float):
                    raise TypeError(f"{name} is {value!r}")
            rows.append(kept)
    except OSError as error:
        raise UserError(f"--run {path.parent}: metrics.jsonl cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--run {path.parent}: line {len(rows) + 1} of metrics.jsonl is damaged ({type(error).__name__}: {error}); "
            f"delete that line, or leave out --run"
        ) from error
    return rows
