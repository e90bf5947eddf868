"""Weights & Biases as one more reader of the metrics. The package is optional."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def check_wandb(project: str | None) -> None:
    """Refuses --train.wandb where the package is missing.

    Raises:
        UserError: names the flag and the package.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"--train.wandb {project}: the package wandb is not installed; pip install wandb, or leave the flag out "
            f"(metrics.jsonl and TensorBoard have the same figures)"
        )


class WandbRun:
    """The run of a folder, the same one at every resume; steps that are done again are not shown twice.

    Args:
        folder: the run folder; W&B's own files go there, too.

    Raises:
        UserError: W&B does not let us in.
    """

    def __init__(self, project: str, folder: Path) -> None:
        import wandb  # optional, see check_wandb

        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        try:
            self._run = wandb.init(project=project, id=identity, name=folder.name, resume="allow", dir=str(folder))
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--train.wandb {project}: {reason} (WANDB_MODE=offline works without a login)") from error

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl."""
        self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
