"""The run folder: what lies where, whose run it is, and where a resume starts. No torch.

run.json        settings and fingerprints that make it this run; written first
config.yaml     the resolved configuration of the last start
metrics.jsonl   one line a step
checkpoints/    step-0000100/{state.json, tensors.safetensors}, `latest` (a name, written last)
adapter/        the newest weights, ready for generation
report.html     curves, written at the end
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import TrainRunConfig, require, to_plain
from pipeline.errors import UserError

# Settings that a resume may change: they alter neither the data, nor the schedule, nor the objective.
FREE_SETTINGS = frozenset(
    {
        "train.micro_batch_size",
        "train.loader_workers",
        "train.loss_chunk_size",
        "train.activation_checkpointing",
        "train.save_every",
        "train.keep_checkpoints",
        "window.inference_sinks",
        "window.inference_window",
    }
)


@dataclass(frozen=True)
class TrainState:
    """Where a run stands after `step` steps (skipped ones included)."""

    step: int = 0
    consumed_samples: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    def latest_checkpoint(self) -> Path | None:
        """The folder that checkpoints/latest names, or None before the first checkpoint.

        Raises:
            UserError: `latest` names a folder that is not there.
        """
        pointer = self.checkpoints / "latest"
        if not pointer.is_file():
            return None
        folder = self.checkpoints / pointer.read_text().strip()
        if not (folder / "state.json").is_file():
            raise UserError(f"{pointer} names {folder.name}, which is missing; write an existing step into it")
        return folder


def fixed_settings(config: TrainRunConfig) -> dict[str, Any]:
    """The settings that a resume must not change, flat: {"train.seed": 0, ...}."""
    tree = to_plain(config)
    flat = {f"{part}.{name}": value for part in ("memory", "window", "train") for name, value in tree[part].items()}
    return {name: value for name, value in flat.items() if name not in FREE_SETTINGS}


def check_run_folder(config: TrainRunConfig, data_fingerprint: str) -> None:
    """Refuses an output folder that holds anything but an earlier start of this very run.

    Raises:
        UserError: names the folder and the first setting that differs.
    """
    folder = RunFolder(config.output)
    require(not config.output.is_file(), f"--output {config.output} is a file; name a folder")
    if not config.output.exists() or not any(not p.name.startswith(".") for p in config.output.iterdir()):
        return
    require(
        folder.identity.is_file(),
        f"--output {config.output} is not empty and holds no run; name another folder",
    )
    require(
        config.resume == "auto",
        f"--output {config.output} holds a run; name another folder or go on from it with --resume auto",
    )
    identity = json.loads(folder.identity.read_text())
    current = fixed_settings(config)
    for name in sorted(current.keys() | identity["settings"].keys()):
        before, now = identity["settings"].get(name), current.get(name)
        require(
            before == now,
            f"--{name} {now} differs from {before}, with which the run in --output {config.output} was started; "
            f"set it back or name another folder",
        )
    require(
        identity["data_fingerprint"] == data_fingerprint,
        f"--data {config.data} (fingerprint {data_fingerprint[:12]}) is not the data of the run in --output "
        f"{config.output} ({identity['data_fingerprint'][:12]}); name another folder",
    )


def check_base_fingerprint(config: TrainRunConfig, base_fingerprint: str) -> None:
    """Refuses to go on with other base weights than the run was started with.

    Raises:
        UserError: names the model and the run.
    """
    path = RunFolder(config.output).identity
    if not path.is_file():
        return
    before = json.loads(path.read_text())["base_fingerprint"]
    require(
        before == base_fingerprint,
        f"--model {config.model} (fingerprint {base_fingerprint[:12]}) is not the base of the run in --output "
        f"{config.output} ({before[:12]}); name another folder",
    )


def claim_run_folder(config: TrainRunConfig, data_fingerprint: str, base_fingerprint: str) -> None:
    """Marks --output as this run's and writes the resolved configuration; on one rank only."""
    folder = RunFolder(config.output)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    identity = {
        "settings": fixed_settings(config),
        "data_fingerprint": data_fingerprint,
        "base_fingerprint": base_fingerprint,
    }
    write_atomically(folder.identity, json.dumps(identity, indent=1, sort_keys=True).encode())
    write_atomically(config.output / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` as a whole: after a crash it holds the old or the new content, never a part."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
